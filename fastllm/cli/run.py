"""``fastllm run``: one answer to a prompt or to stdin, else an interactive chat."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from fastllm.cli import options, text_input
from fastllm.cli.loaded import loaded
from fastllm.errors import RequestError
from fastllm.request import Chunk, SamplingParams, Timings

if TYPE_CHECKING:
    from fastllm.answers import Stream
    from fastllm.llm import LLM


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="System message of the chat.")
@click.option("--no-chat", is_flag=True, help="Continue the text itself, without chat template.")
@options.sampling_options
@options.as_json
@options.model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    system: str | None,
    no_chat: bool,
    max_tokens: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    as_json: bool,
    n_threads: int | None,
    n_ctx: int | None,
    n_batch: int,
    quant: str | None,
    kv_type: str | None,
) -> None:
    """Answer PROMPT, or what comes on stdin, or chat.

    With neither, in a terminal, a chat begins; Ctrl-C stops an answer, /bye ends the chat. The
    answer goes to stdout, everything else to stderr. PROMPT "-" reads stdin.
    """
    params = SamplingParams(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
        max_tokens=None if max_tokens < 0 else max_tokens,
    )
    interactive = prompt is None and sys.stdin.isatty()
    # Before the load: wrong input is refused at once.
    text = "" if interactive else _text(prompt)
    with loaded(
        model, n_threads=n_threads, n_ctx=n_ctx, n_batch=n_batch, quant=quant, kv_type=kv_type
    ) as llm:
        verbose = options.is_verbose(ctx)
        if verbose:
            print(f"{llm!r}, {llm.isa}, loaded in {llm.load_s:.2f} s", file=sys.stderr)
        chatting = llm.has_chat_template and not no_chat
        if interactive:
            from fastllm.cli.chat import Chat

            Chat(llm, params, system, chatting=chatting, as_json=as_json, verbose=verbose).loop()
            return
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        stream = begin(llm, messages, params, chatting=chatting)
        show(llm, stream, as_json=as_json, verbose=verbose)


def begin(
    llm: LLM, messages: list[dict[str, str]], params: SamplingParams, *, chatting: bool
) -> Stream:
    """Start an answer to a conversation, or to its last text alone when not `chatting`."""
    last = messages[-1]["content"]
    if not chatting:
        return llm.stream(last, params)
    if not last:
        raise RequestError("the prompt is empty: give some text")
    return llm.chat(messages, params, stream=True)


def show(llm: LLM, stream: Stream, *, as_json: bool, verbose: bool) -> str:
    """Print an answer as it comes (or one JSON object at its end) and return its text."""
    pieces: list[str] = []
    token_ids: list[int] = []
    last: Chunk | None = None
    for last in stream:
        pieces.append(last.text)
        token_ids += last.token_ids
        if not as_json and last.text:
            sys.stdout.write(last.text)
            sys.stdout.flush()
    text = "".join(pieces)
    timings = (last.timings if last is not None else None) or Timings()
    if as_json:
        reason = last.finish_reason if last is not None else None
        print(json.dumps(_answer(llm, text, token_ids, reason, timings), ensure_ascii=False))
    elif not text.endswith("\n"):
        print()
    sys.stdout.flush()
    if verbose:
        print(timing_line(timings), file=sys.stderr)
    return text


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


def _text(prompt: str | None) -> str:
    if prompt is None or prompt == "-":
        return text_input.stdin()
    return text_input.argument(prompt)
