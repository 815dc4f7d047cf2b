"""``fastllm pull``: fetch a model, checked and resumable."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options
from fastllm.cli.progress import ProgressLine


@click.command("pull")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@options.verbose
def command(names: tuple[str, ...]) -> None:
    """Fetch models by NAME or hf:ORG/REPO[:FILE] and print their paths.

    Without a name the known names are listed.
    """
    from fastllm.hub import registry, resolve

    if not names:
        width = max(map(len, registry.ENTRIES))
        for entry in registry.ENTRIES.values():
            print(f"{entry.name:<{width}}  {entry.summary}")
        return
    for name in names:
        with ProgressLine() as progress:
            path = resolve.pull(name, progress=progress)
        print(f"{name} is here", file=sys.stderr)
        print(path)
