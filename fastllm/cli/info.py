"""``fastllm info``: what a model is, and whether it fits in this machine's memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from fastllm.cli import notices, options
from fastllm.cli.json_output import print_json
from fastllm.cli.units import count, size
from fastllm.errors import BudgetError


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
    from fastllm.options import LoadOptions

    found: Summary = summarize(model, LoadOptions(n_threads, n_ctx, n_batch, quant, kv_type))
    if quant is not None:
        notices.quant(model, quant)
    n_ctx, refusal = _settled(found)
    facts = _facts(found, n_ctx, refusal)
    if as_json:
        print_json(facts)
        return
    _print(found, facts, n_ctx, refusal)


def _settled(found: Any) -> tuple[int, str]:
    """Return the context that a load takes, and why there cannot be one ("" where there can)."""
    if found.plan is None:
        return 0, f"cannot be loaded: {found.refusal}"
    try:
        return found.plan.context(), ""
    except BudgetError as error:
        return found.plan.wanted_context(), f"does not fit: {error}"


def _facts(found: Any, n_ctx: int, refusal: str) -> dict[str, Any]:
    from fastllm.machine.memory import available_bytes, limit_bytes

    config, plan = found.config, found.plan
    limit, source = limit_bytes()
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
        "context": config.max_position_embeddings,
        "kv_type": plan.kv_type if plan else None,
        "kv_bytes_per_token": plan.kv_bytes_per_token if plan else None,
        "tensors": {
            name: {"parameters": g.num_values, "bytes": g.nbytes, "types": dict(g.type_bytes)}
            for name, g in found.groups.items()
        },
        "memory_limit_bytes": limit,
        "memory_limit_source": source,
        "memory_available_bytes": available_bytes(),
        "memory_needed": _ledger(plan, n_ctx) if plan else None,
        "fits": not refusal,
        "context_that_fits": plan.fitting_context() if plan else 0,
    }


def _print(found: Any, facts: dict[str, Any], n_ctx: int, refusal: str) -> None:
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
    if found.plan is not None:
        per_token = size(facts["kv_bytes_per_token"])
        lines.append(("KV cache", f"{per_token} a token ({facts['kv_type']})"))
    lines.append(("memory", refusal or _memory(found.plan, facts, n_ctx)))
    for name, value in lines:
        print(f"{name:<13} {value}")
    print("\ntensors")
    for name, values, nbytes, types in groups:
        print(f"  {name:<11} {values:>8} {nbytes:>9}  {types}")


def _ledger(plan: Any, n_ctx: int) -> dict[str, int]:
    ledger = plan.ledger(n_ctx)
    return {**dataclasses.asdict(ledger), "total": ledger.total}


def _memory(plan: Any, facts: dict[str, Any], n_ctx: int) -> str:
    context, fitting = facts["context"], facts["context_that_fits"]
    ledger = plan.ledger(n_ctx)
    tokens = "its whole context" if n_ctx == context else f"{n_ctx} of {context} tokens"
    more = f" (-c {fitting} would, too)" if n_ctx < fitting else ""
    free, limit = size(facts["memory_available_bytes"]), size(facts["memory_limit_bytes"])
    return (
        f"fits with {tokens}{more}: {ledger} = {size(ledger.total)}; {free} of {limit} "
        f"({facts['memory_limit_source']}) are free"
    )
