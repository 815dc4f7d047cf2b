"""``fastllm rm``: delete pulled models."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options
from fastllm.cli.units import size


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@options.verbose
def command(names: tuple[str, ...]) -> None:
    """Delete pulled models by NAME, as `fastllm ls` shows it."""
    from fastllm.hub.store import Store

    store = Store()
    for name in names:
        nbytes = store.remove(name)
        print(f"removed {name}, {size(nbytes)} freed", file=sys.stderr)
