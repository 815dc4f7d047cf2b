"""``fastllm quantize``: write a model again with smaller weights."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options
from fastllm.cli.progress import ProgressLine
from fastllm.cli.units import size


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option(
    "--type",
    "kind",
    type=click.Choice(["q8_0", "q4_0", "q4_1"]),
    default="q8_0",
    show_default=True,
    help="Type of the weight matrices.",
)
@options.verbose
def command(model: str, out: str, kind: str) -> None:
    """Write MODEL to the GGUF file OUT with its matrices as q8_0, q4_0 or q4_1."""
    from fastllm.formats.quantize_file import quantize_checkpoint
    from fastllm.loading import open_model

    with ProgressLine() as progress:
        source = open_model(model, progress)

        def advance(done: int, total: int) -> None:
            progress(f"writing {out}", done / max(total, 1))

        stats = quantize_checkpoint(source, out, kind, advance)
    print(
        f"{out}: {size(stats.source_bytes)} became {size(stats.file_bytes)}, "
        f"{stats.num_converted} of {stats.num_tensors} tensors converted",
        file=sys.stderr,
    )
