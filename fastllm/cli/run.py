"""``fastllm run``: one answer to a prompt or to stdin, else an interactive chat."""

from __future__ import annotations

import sys

import click

from fastllm.cli import notices, options, template_input, text_input
from fastllm.cli.answer import begin, show
from fastllm.cli.chat import Chat
from fastllm.cli.loaded import loaded
from fastllm.request import SamplingParams


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-f", "--file", help="Read the prompt from a file, as it is.")
@click.option("--system", help="System message of the chat.")
@click.option("--tools", "tools_file", help="JSON file of functions the model may call.")
@click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable of the chat template, as enable_thinking=false; repeatable.",
)
@click.option(
    "--no-context-shift",
    is_flag=True,
    help="In a chat, stop at the end of the context instead of forgetting the oldest turns.",
)
@click.option("--no-chat", is_flag=True, help="Continue the text itself, without chat template.")
@options.sampling_options
@options.as_json
@options.model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    file: str | None,
    system: str | None,
    tools_file: str | None,
    template_args: tuple[str, ...],
    no_context_shift: bool,
    no_chat: bool,
    max_tokens: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    seed: int | None,
    stop: tuple[str, ...],
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
    if prompt is not None and file is not None:
        raise click.UsageError("give PROMPT or --file, not both")
    params = SamplingParams(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(text_input.argument(text) for text in stop),
        max_tokens=None if max_tokens < 0 else max_tokens,
    )
    interactive = prompt is None and file is None and sys.stdin.isatty()
    # Before the load: wrong input is refused at once.
    text = "" if interactive else _text(prompt, file)
    system = None if system is None else text_input.argument(system)
    extra = template_input.read(tools_file, template_args)
    notices.greedy(ctx)
    if no_context_shift and not interactive:
        notices.no_chat_to_shorten()
    with loaded(
        model, n_threads=n_threads, n_ctx=n_ctx, n_batch=n_batch, quant=quant, kv_type=kv_type
    ) as llm:
        verbose = options.is_verbose(ctx)
        if verbose:
            print(f"{llm!r}, {llm.isa}, loaded in {llm.load_s:.2f} s", file=sys.stderr)
        chatting = llm.has_chat_template and not no_chat
        if chatting:
            notices.idle_variables(llm, extra)
        else:
            notices.no_template(llm, system, extra, interactive=interactive, no_chat=no_chat)
        if interactive:
            Chat(
                llm,
                params,
                system,
                extra,
                chatting=chatting,
                context_shift=not no_context_shift,
                as_json=as_json,
                verbose=verbose,
            ).loop()
            return
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        stream = begin(llm, messages, params, extra, chatting=chatting)
        show(llm, stream, as_json=as_json, verbose=verbose)


def _text(prompt: str | None, file: str | None) -> str:
    if file is not None:
        return text_input.file(file)
    if prompt is None or prompt == "-":
        return text_input.stdin()
    return text_input.argument(prompt)
