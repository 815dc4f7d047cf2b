"""Start an answer and print it as it comes; what ``run`` and its chat share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fastllm.cli import notices
from fastllm.cli.json_output import print_json
from fastllm.errors import RequestError
from fastllm.request import Chunk, SamplingParams, Timings

if TYPE_CHECKING:
    from fastllm.answers import Stream
    from fastllm.cli.template_input import TemplateInput
    from fastllm.llm import LLM


def begin(
    llm: LLM,
    messages: list[dict[str, str]],
    params: SamplingParams,
    extra: TemplateInput,
    *,
    chatting: bool,
) -> Stream:
    """Start an answer to a conversation, or to its last text alone when not `chatting`."""
    last = messages[-1]["content"]
    if not chatting:
        return llm.stream(last, params)
    if not last:
        raise RequestError("the prompt is empty: give some text")
    return llm.chat(messages, params, stream=True, **extra.keywords)


def show(llm: LLM, stream: Stream, *, as_json: bool, verbose: bool) -> str:
    """Print an answer as it comes (or one JSON object at its end) and return its text."""
    pieces: list[str] = []
    token_ids: list[int] = []
    last: Chunk | None = None
    try:
        for last in stream:
            pieces.append(last.text)
            token_ids += last.token_ids
            if not as_json and last.text:
                sys.stdout.write(last.text)
                sys.stdout.flush()
    except BaseException:
        # What is said of it stands on a line of its own.
        if not as_json and _is_unfinished(pieces):
            print(flush=True)
        raise
    text = "".join(pieces)
    timings = (last.timings if last is not None else None) or Timings()
    if as_json:
        reason = last.finish_reason if last is not None else None
        print_json(_answer(llm, text, token_ids, reason, timings))
    elif not text.endswith("\n"):
        print()
    sys.stdout.flush()
    if last is not None and last.finish_reason == "length":
        notices.full_context(llm, timings)
    if verbose:
        print(timing_line(timings), file=sys.stderr)
    return text


def _is_unfinished(pieces: list[str]) -> bool:
    text = "".join(pieces)
    return bool(text) and not text.endswith("\n")


def _answer(
    llm: LLM, text: str, token_ids: list[int], reason: str | None, timings: Timings
) -> dict[str, Any]:
    return {
        "model": llm.name,
        "text": text,
        "finish_reason": reason,
        "token_ids": token_ids,
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "timings": timings.as_dict(),
    }


def timing_line(timings: Timings) -> str:
    """Return one line of figures for a person."""
    return (
        f"prompt {timings.prompt_tokens} tokens ({timings.cached_tokens} cached), "
        f"{timings.prompt_tps:.1f} tok/s; answer {timings.completion_tokens} tokens, "
        f"{timings.decode_tps:.1f} tok/s; first token after {timings.ttft_s * 1e3:.0f} ms"
    )
