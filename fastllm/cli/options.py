"""Options that several commands share, under llama.cpp's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fastllm.arguments import MAX_INT
from fastllm.options import KV_TYPES, MAX_BATCH, MAX_THREADS, QUANTS
from fastllm.request import LARGEST, REAL_RANGES

F = TypeVar("F", bound=Callable[..., Any])


class _Real(click.FloatRange):
    """The numbers that a field of `SamplingParams` may be."""

    def __init__(self, field: str) -> None:
        super().__init__(*REAL_RANGES[field])

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return a number of the range; click's own lets NaN pass."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


def _texts(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if "" in value:
        raise click.BadParameter("an empty text would end every answer before it began")
    return value


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    if value:
        ctx.find_root().ensure_object(dict)["verbose"] = True
    return value


verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_set_verbose,
    help="Say more on stderr; on an error, show where.",
)
threads = click.option(
    "-t",
    "--threads",
    "n_threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Threads. Default: one a core.",
)
context = click.option(
    "-c",
    "--ctx-size",
    "n_ctx",
    type=click.IntRange(0, MAX_INT),
    callback=lambda _ctx, _param, value: value or None,
    help="Tokens of context. Default: 0, the model's own, 8192 at most.",
)
batch = click.option(
    "-b",
    "--batch-size",
    "n_batch",
    type=click.IntRange(1, MAX_BATCH),
    default=512,
    show_default=True,
    help="Tokens of a prompt computed per step.",
)
quant = click.option(
    "--quant",
    type=click.Choice(QUANTS),
    help="Quantize float weights while they are loaded.",
)
kv_type = click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES),
    help="Type of the KV cache. Default: i16; f32 for a model that is all F32.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

_SAMPLING = (
    click.option(
        "-n",
        "--n-predict",
        "max_tokens",
        type=click.IntRange(-1, LARGEST["max_tokens"]),
        default=-1,
        help="Tokens of the answer at most. Default: -1, until the model ends it.",
    ),
    click.option(
        "--temp", type=_Real("temperature"), default=0.8, show_default=True, help="0 is greedy."
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, LARGEST["top_k"]),
        default=40,
        show_default=True,
        help="0 is off.",
    ),
    click.option("--top-p", type=_Real("top_p"), default=0.95, show_default=True, help="1 is off."),
    click.option("--min-p", type=_Real("min_p"), default=0.05, show_default=True, help="0 is off."),
    click.option(
        "--repeat-penalty",
        type=_Real("repetition_penalty"),
        default=1.0,
        show_default=True,
        help="1 is off.",
    ),
    click.option(
        "--presence-penalty",
        type=_Real("presence_penalty"),
        default=0.0,
        show_default=True,
        help="Taken from the logit of a token that the answer has. 0 is off.",
    ),
    click.option(
        "--frequency-penalty",
        type=_Real("frequency_penalty"),
        default=0.0,
        show_default=True,
        help="The same, for each time that it occurs. 0 is off.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(-1, LARGEST["seed"]),
        default=-1,
        callback=lambda _ctx, _param, value: None if value == -1 else value,
        help="Same seed, same answer. Default: -1, a fresh one.",
    ),
    click.option(
        "--stop",
        multiple=True,
        callback=_texts,
        help="End the answer before this text; repeatable.",
    ),
)


def model_options(command: F) -> F:
    """Add what loading a model takes: -t -c -b --quant --kv-type -v."""
    for option in (verbose, kv_type, quant, batch, context, threads):
        command = option(command)
    return command


def sampling_options(command: F) -> F:
    """Add how an answer is sampled: -n --temp --top-k ... --seed --stop."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def is_verbose(ctx: click.Context) -> bool:
    """Return whether -v was given, to the command or before it."""
    return bool(ctx.find_root().ensure_object(dict).get("verbose"))
