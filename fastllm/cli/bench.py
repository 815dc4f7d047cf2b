"""``fastllm bench``: prompt and generation speed, in llama-bench's terms.

ppN is a prompt of N random tokens up to its first answer token; tgN is N tokens generated greedily
from one, sampling included. One run of each comes first and is not counted.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fastllm.arguments import shown
from fastllm.cli import options
from fastllm.cli.json_output import print_json
from fastllm.cli.loaded import loaded
from fastllm.cli.units import count, size
from fastllm.errors import FastLLMError
from fastllm.machine.memory import peak_rss_bytes
from fastllm.request import SamplingParams, Timings

if TYPE_CHECKING:
    from fastllm.llm import LLM


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return whole numbers with commas between, as llama-bench takes them; 0 is left out."""
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{shown(value)} is not a list of whole numbers") from error
    if min(numbers) < 0:
        raise click.BadParameter(f"{shown(value)} has a number below 0")
    return tuple(n for n in numbers if n)


def _depths(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return depths; here 0 is one."""
    counts = _counts(ctx, param, value)
    return (0, *counts) if "0" in [part.strip() for part in value.split(",")] else counts


@dataclass(frozen=True)
class Result:
    """One test: its name, tokens per second and milliseconds to the first token of each run."""

    name: str
    tps: list[float]
    ttft_ms: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON output has of it."""
        return {
            "name": self.name,
            "tps_median": statistics.median(self.tps),
            "tps_mean": statistics.mean(self.tps),
            "tps_sd": statistics.stdev(self.tps) if len(self.tps) > 1 else 0.0,
        }


@click.command("bench")
@click.argument("model")
@click.option("-p", "--n-prompt", callback=_counts, default="512", show_default=True)
@click.option("-n", "--n-gen", callback=_counts, default="128", show_default=True)
@click.option(
    "-d",
    "--n-depth",
    callback=_depths,
    default="0",
    show_default=True,
    help="Measure behind that many tokens, which are not counted.",
)
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Choice(["md", "json"]), default="md", show_default=True)
@options.threads
@options.batch
@options.quant
@options.kv_type
@options.verbose
def command(
    model: str,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    repetitions: int,
    output: str,
    n_threads: int | None,
    n_batch: int,
    quant: str | None,
    kv_type: str | None,
) -> None:
    """Measure how fast MODEL reads a prompt (-p) and generates (-n), also deep in a text (-d)."""
    if not n_prompt and not n_gen:
        raise click.UsageError("nothing to measure: -p and -n are both 0")
    n_ctx = max(n_depth) + max((*n_prompt, *n_gen)) + 1
    with loaded(
        model, n_threads=n_threads, n_ctx=n_ctx, n_batch=n_batch, quant=quant, kv_type=kv_type
    ) as llm:
        results = []
        for depth in n_depth:
            results += [_measure(llm, "pp", n, depth, repetitions) for n in n_prompt]
            results += [_measure(llm, "tg", n, depth, repetitions) for n in n_gen]
        if output == "json":
            print_json(_report(llm, results))
        else:
            _print_table(llm, model, results)


def _measure(llm: LLM, kind: str, tokens: int, depth: int, repetitions: int) -> Result:
    rng = random.Random(0)
    num_prompt, num_answer = (tokens, 1) if kind == "pp" else (1, tokens)
    params = SamplingParams(temperature=0, max_tokens=num_answer, ignore_eos=True)
    runs: list[Timings] = []
    for _ in range(repetitions + 1):
        llm.reset()  # No prompt may find its beginning in the cache.
        before = [rng.randrange(llm.vocab_size) for _ in range(depth)]
        prompt = [rng.randrange(llm.vocab_size) for _ in range(num_prompt)]
        if before:  # its keys and values stay in the cache for what is measured
            llm.generate([before], SamplingParams(temperature=0, max_tokens=0))
        timings = llm.generate([before + prompt], params)[0].timings
        if timings.cached_tokens < depth:
            raise FastLLMError(
                f"only {timings.cached_tokens} of {depth} tokens stayed in the cache"
            )
        runs.append(timings)
    counted = runs[1:]
    seconds = [t.prompt_s if kind == "pp" else t.prompt_s + t.decode_s for t in counted]
    return Result(
        f"{kind}{tokens}" + (f" @ d{depth}" if depth else ""),
        [tokens / max(s, 1e-9) for s in seconds],
        [t.ttft_s * 1e3 for t in counted],
    )


def _report(llm: LLM, results: list[Result]) -> dict[str, Any]:
    return {
        "model": llm.name,
        "model_bytes": llm.model_bytes,
        "threads": llm.n_threads,
        "tests": [result.as_dict() for result in results],
        "load_s": llm.load_s,
        "ttft_ms": statistics.median(results[0].ttft_ms),
        "peak_rss_bytes": peak_rss_bytes(),
        "isa": llm.isa,
    }


def _print_table(llm: LLM, model: str, results: list[Result]) -> None:
    from fastllm.cli.summary import label_and_parameters

    label, parameters = label_and_parameters(model)
    rows = [("model", "size", "params", "backend", "threads", "test", "t/s")]
    for result in results:
        row = result.as_dict()
        rows.append(
            (
                label,
                size(llm.model_bytes),
                count(parameters),
                llm.isa,
                str(llm.n_threads),
                result.name,
                f"{row['tps_mean']:.2f} ± {row['tps_sd']:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = [f"{'-' * (w - 1)}{'-' if i in (0, 3) else ':'}" for i, w in enumerate(widths)]
    for row_index, cells in enumerate(rows):
        padded = [
            c.ljust(w) if i in (0, 3) else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        print(f"| {' | '.join(padded)} |")
        if row_index == 0:
            print(f"| {' | '.join(marks)} |")
