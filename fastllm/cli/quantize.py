"""``fastllm quantize``: write a model again with smaller weights."""

from __future__ import annotations

import sys

import click

from fastllm.cli import notices, options
from fastllm.cli.progress import ProgressLine
from fastllm.cli.units import size

# K-quants first; "_m" are llama.cpp's mixtures. Written out so that --help imports no NumPy.
TYPES = (
    "q4_k_m", "q5_k_m", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "f16",
    "bf16", "f32",
)  # fmt: skip


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option(
    "--to",
    "--type",
    "kind",
    type=click.Choice(TYPES),
    default="q8_0",
    show_default=True,
    help="Type of the weight matrices; _m mixes in q6_k where it matters.",
)
@options.verbose
def command(model: str, out: str, kind: str) -> None:
    """Write MODEL to the GGUF file OUT with its matrices in another type.

    MODEL is a GGUF file or a Hugging Face folder, as everywhere.
    """
    from fastllm.formats.quantize_file import quantize_checkpoint
    from fastllm.loading import open_model

    with ProgressLine() as progress:
        source = open_model(model, progress)
        said: tuple[str, ...] = ()
        if source.kind == "hf":
            from fastllm.conversion import as_gguf

            progress(f"reading {model}", 0.0)
            source = as_gguf(source)
            said = source.notes

        def advance(done: int, total: int) -> None:
            progress(f"writing {out}", done / max(total, 1))

        stats = quantize_checkpoint(source, out, kind, advance)
    print(
        f"{out}: {size(stats.source_bytes)} became {size(stats.file_bytes)}, "
        f"{stats.num_converted} of {stats.num_tensors} tensors converted",
        file=sys.stderr,
    )
    for note in said:
        notices.say(f"{out}: {note}")
    if stats.rounded_twice:
        notices.say(
            f"{model} was quantized already ({', '.join(stats.rounded_twice)}); rounding twice "
            "costs quality, start from f32, f16 or bf16 where there is one"
        )
