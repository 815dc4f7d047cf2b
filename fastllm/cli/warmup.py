"""``fastllm warmup``: build every kernel that this machine may need, once."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from fastllm.cli import options
from fastllm.cli.progress import ProgressLine
from fastllm.errors import FastLLMError


@click.command("warmup")
@options.verbose
def command() -> None:
    """Build the kernels for this machine, so that no model has to wait for them."""
    from fastllm.kernels.objects import cache_root, warmup

    folder = cache_root()
    _check_writable(folder)  # before minutes of work that could not be kept
    with ProgressLine() as progress:
        built = warmup(progress)
    lost = [unit for unit, path in built.items() if not Path(path).is_file()]
    if lost:
        raise FastLLMError(
            f"{len(lost)} of {len(built)} kernel objects could not be kept in {folder}: is the "
            "disk full?"
        )
    print(f"{len(built)} kernel objects are ready in {folder}", file=sys.stderr)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FastLLMError(
            f"{folder} cannot be written ({error.strerror}), so nothing built would be kept: let "
            "FASTLLM_HOME name another folder"
        ) from error
