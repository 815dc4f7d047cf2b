"""``fastllm tokenize``: the tokens of a text, also for files that hold a vocabulary only."""

from __future__ import annotations

import click

from fastllm.cli import options, text_input
from fastllm.cli.json_output import print_json


@click.command("tokenize")
@click.argument("model")
@click.argument("text", required=False)
@click.option("-f", "--file", help="Read the text from a file.")
@click.option("--no-bos", is_flag=True, help="Without the special tokens around the text.")
@click.option("--parse-special", is_flag=True, help="Take <|...|> and the like for the tokens.")
@options.as_json
@options.verbose
def command(
    model: str,
    text: str | None,
    file: str | None,
    no_bos: bool,
    parse_special: bool,
    as_json: bool,
) -> None:
    """Print the tokens of TEXT, or of stdin: one id and piece a line.

    With --json: {"tokens": [ids], "pieces": [texts], "count": n}. A file (-f) is taken as it is,
    of stdin the last line feed is left out.
    """
    if text is not None and file is not None:
        raise click.UsageError("give TEXT or --file, not both")
    if file is not None:
        text = text_input.file(file)
    elif text is None:
        text = text_input.stdin()
    else:
        text = text_input.argument(text)
    from fastllm.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text, add_special_tokens=not no_bos, parse_special=parse_special)
    pieces = [tokenizer.id_to_piece(i) for i in ids]
    if as_json:
        found = {"tokens": ids, "pieces": pieces, "count": len(ids)}
        print_json(found)
        return
    for token_id, piece in zip(ids, pieces, strict=True):
        print(f"{token_id:>7} {piece!r}")
