"""``fastllm warmup``: build every kernel that this machine may need, once."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options
from fastllm.cli.progress import ProgressLine


@click.command("warmup")
@options.verbose
def command() -> None:
    """Build the kernels for this machine, so that no model has to wait for them."""
    from fastllm.kernels.objects import cache_root, warmup

    with ProgressLine() as progress:
        built = warmup(progress)
    print(f"{len(built)} kernel objects are ready in {cache_root()}", file=sys.stderr)
