"""``fastllm perplexity``: how well a model predicts a text file."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options, text_input
from fastllm.cli.json_output import print_json
from fastllm.cli.loaded import loaded
from fastllm.errors import RequestError


@click.command("perplexity")
@click.argument("model")
@click.argument("file")
@click.option(
    "-c",
    "--ctx-size",
    "n_ctx",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--tokens", type=click.IntRange(1), help="Use the first N tokens of the text only.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@options.threads
@options.batch
@options.quant
@options.kv_type
@options.verbose
def command(
    model: str,
    file: str,
    n_ctx: int,
    tokens: int | None,
    output: str,
    n_threads: int | None,
    n_batch: int,
    quant: str | None,
    kv_type: str | None,
) -> None:
    """Score FILE ("-" is stdin) with MODEL and print its perplexity.

    The text is tokenized once, without BOS and with no special tokens in it, and cut into windows
    that do not overlap. Where the model asks for a BOS each window begins with one. Every token
    after a window's first is scored; an incomplete last window is dropped.
    """
    from fastllm.scoring import perplexity

    text = text_input.file(file)
    with loaded(
        model, n_threads=n_threads, n_ctx=n_ctx, n_batch=n_batch, quant=quant, kv_type=kv_type
    ) as llm:
        token_ids = llm.tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        if tokens is not None and tokens > len(token_ids):
            raise RequestError(f"--tokens {tokens}: {file} has only {len(token_ids)} tokens")
        result = perplexity(
            llm, token_ids[:tokens], n_ctx, add_bos=llm.tokenizer.add_bos, on_window=_report
        )
        if output == "json":
            print_json({**result.as_dict(), "model": llm.name, "threads": llm.n_threads})
        else:
            print(f"perplexity {result.ppl:.4f} over {result.tokens} tokens")


def _report(number: int, count: int, ppl: float) -> None:
    if sys.stderr.isatty():
        end = "\n" if number == count else ""
        print(f"\rwindow {number}/{count}: {ppl:.3f}   ", end=end, file=sys.stderr, flush=True)
