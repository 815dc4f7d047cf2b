"""One line on stderr for each setting that has no effect, or another than was asked."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from fastllm.errors import FastLLMError

if TYPE_CHECKING:
    from fastllm.cli.template_input import TemplateInput
    from fastllm.llm import LLM
    from fastllm.request import Timings

_FLOATS = {"f32", "f16", "bf16", "f64"}
# Penalties change the logits themselves; the rest of the chain only chooses among equals.
_IDLE_WHEN_GREEDY = {
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "seed": "--seed",
}


def say(text: str) -> None:
    """Print a notice."""
    print(f"note: {text}", file=sys.stderr)


def greedy(ctx: click.Context) -> None:
    """Name the sampling options that --temp 0 leaves idle."""
    if ctx.params.get("temp") != 0:
        return
    given = [
        flag
        for name, flag in _IDLE_WHEN_GREEDY.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        say(f"--temp 0 takes the likeliest token; {', '.join(given)} changes nothing")


def no_chat_to_shorten() -> None:
    """Say that a single answer has no turns to forget."""
    say("--no-context-shift is for a chat: it changes nothing here")


def no_template(
    llm: LLM, system: str | None, extra: TemplateInput, *, interactive: bool, no_chat: bool
) -> None:
    """Say what a text that is merely continued does not have."""
    why = "--no-chat" if no_chat else f"{llm.name} has no chat template"
    if system:
        say(f"{why}: --system is not used")
    if extra:
        say(f"{why}: --tools and --template-arg are not used")
    if interactive:
        say(f"{why}: each line is continued by itself, nothing is remembered")


def idle_variables(llm: LLM, extra: TemplateInput) -> None:
    """Name what --tools and --template-arg hand to a template that does not look at it."""
    if extra.tools is not None and not llm.template_reads("tools"):
        say(f"the chat template of {llm.name} does not know of tools: --tools changes nothing")
    for name in extra.template_args:
        if not llm.template_reads(name):
            say(f"the chat template of {llm.name} has no {name}: --template-arg changes nothing")


def full_context(llm: LLM, timings: Timings) -> None:
    """Say that an answer ended where the context did."""
    if timings.prompt_tokens + timings.completion_tokens >= llm.n_ctx:
        say(f"the context of {llm.n_ctx} tokens is full, the answer is cut (-c sets a larger one)")


def forgotten(count: int, n_ctx: int) -> None:
    """Say that a chat forgets its oldest messages."""
    say(
        f"the context of {n_ctx} tokens is nearly full: the {count} oldest messages are forgotten "
        "(--no-context-shift keeps them)"
    )


def context(llm: LLM) -> None:
    """Say that memory is too short for the default context."""
    if llm.n_ctx < llm.n_ctx_wanted:
        say(
            f"memory is short: a context of {llm.n_ctx} tokens instead of {llm.n_ctx_wanted} "
            "(-c asks for another)"
        )


def quant(model: str, type: str) -> None:
    """Say that --quant finds nothing to quantize."""
    from fastllm.cli.summary import summarize

    types: Counter[str] = Counter()
    with contextlib.suppress(FastLLMError):  # loading is who tells what is wrong with a model
        for group in summarize(model).groups.values():
            types += group.type_bytes
    if types and not types.keys() & _FLOATS:
        found = ", ".join(sorted(types))
        say(f"{model} is quantized already ({found}): --quant {type} changes nothing")
