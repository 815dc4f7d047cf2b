"""``fastllm info``: what a model is, and whether it fits in this machine's memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from fastllm.cli import options
from fastllm.cli.json_output import print_json
from fastllm.cli.units import count, size


@click.command("info")
@click.argument("model")
@options.as_json
@options.model_options
def command(
    model: str,
    as_json: bool,
    n_threads: int | None,
    n_ctx: int | None,
    n_batch: int,
    quant: str | None,
    kv_type: str | None,
) -> None:
    """Show architecture, sizes, quantization, KV memory and what fits here; nothing is loaded.

    Memory is that of a load with the same options.
    """
    from fastllm.cli.summary import Summary, summarize
    from fastllm.machine.memory import available_bytes, limit_bytes
    from fastllm.options import LoadOptions

    found: Summary = summarize(model, LoadOptions(n_threads, n_ctx, n_batch, quant, kv_type))
    limit, source = limit_bytes()
    facts = _facts(found, n_ctx, limit, source, available_bytes())
    if as_json:
        print_json(facts)
        return
    _print(found, facts, n_ctx)


def _facts(
    found: Any, asked: int | None, limit: int, source: str, available: int
) -> dict[str, Any]:
    config = found.config
    context, plan = config.max_position_embeddings, found.plan
    fitting = plan.fitting_context(limit) if plan else 0
    wanted = plan.wanted_context() if plan else 0
    if asked is None:  # a default shrinks to what fits
        wanted = min(wanted, fitting)
    return {
        "path": str(found.path),
        "name": config.name,
        "architecture": config.architecture,
        "parameters": found.num_parameters,
        "model_bytes": found.nbytes,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context": context,
        "kv_type": plan.kv_type if plan else None,
        "kv_bytes_per_token": plan.kv_bytes_per_token if plan else None,
        "tensors": {
            name: {"parameters": g.num_values, "bytes": g.nbytes, "types": dict(g.type_bytes)}
            for name, g in found.groups.items()
        },
        "memory_limit_bytes": limit,
        "memory_limit_source": source,
        "memory_available_bytes": available,
        "memory_needed": _ledger(plan, wanted) if plan else None,
        "fits": 0 < wanted <= fitting,
        "context_that_fits": fitting,
    }


def _print(found: Any, facts: dict[str, Any], asked: int | None) -> None:
    config = found.config
    groups = [
        (
            name,
            count(group.num_values),
            size(group.nbytes),
            ", ".join(f"{t} {b / group.nbytes:.0%}" for t, b in group.type_bytes.most_common()),
        )
        for name, group in found.groups.items()
    ]
    lines = [
        ("model", config.name or found.path),
        ("path", found.path),
        ("architecture", config.architecture),
        ("parameters", count(facts["parameters"])),
        ("weights", size(facts["model_bytes"])),
        ("layers", f"{config.num_hidden_layers} of width {config.hidden_size}"),
        ("mlp width", str(config.intermediate_size)),
        (
            "attention",
            f"{config.num_attention_heads} heads of {config.head_dim}, "
            f"{config.num_key_value_heads} for keys and values",
        ),
        ("vocabulary", str(config.vocab_size)),
        ("context", f"{facts['context']} tokens"),
    ]
    if found.plan is None:
        lines.append(("memory", f"cannot be loaded: {found.refusal}"))
    else:
        per_token = size(facts["kv_bytes_per_token"])
        lines.append(("KV cache", f"{per_token} a token ({facts['kv_type']})"))
        lines.append(("memory", _memory(found.plan, facts, asked)))
    for name, value in lines:
        print(f"{name:<13} {value}")
    print("\ntensors")
    for name, values, nbytes, types in groups:
        print(f"  {name:<11} {values:>8} {nbytes:>9}  {types}")


def _ledger(plan: Any, n_ctx: int) -> dict[str, int]:
    ledger = plan.ledger(max(n_ctx, 1))
    return {**dataclasses.asdict(ledger), "total": ledger.total}


def _memory(plan: Any, facts: dict[str, Any], asked: int | None) -> str:
    limit = f"{size(facts['memory_limit_bytes'])} ({facts['memory_limit_source']})"
    context, fitting = facts["context"], facts["context_that_fits"]
    if not facts["fits"]:
        least = plan.ledger(asked or 1)
        advice = f"; -c {fitting} fits" if fitting else ""
        return f"does not fit: {least} = {size(least.total)} is more than {limit}{advice}"
    shown = fitting if asked is None else asked
    ledger = plan.ledger(shown)
    whole = "its whole context" if shown == context else f"{shown} of {context} tokens"
    now = size(facts["memory_available_bytes"])
    return f"fits with {whole}: {ledger} = {size(ledger.total)} of {limit}; {now} are free now"
