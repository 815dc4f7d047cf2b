"""``fastllm ls``: the models that were pulled."""

from __future__ import annotations

import sys

import click

from fastllm.cli import options
from fastllm.cli.json_output import print_json
from fastllm.cli.units import size


@click.command("ls")
@options.as_json
@options.verbose
def command(as_json: bool) -> None:
    """List the models that are here: name, size, path."""
    from fastllm.hub.store import Store

    store = Store()
    found = list(store)
    if as_json:
        rows = [{"name": s.name, "bytes": s.nbytes, "path": str(s.path)} for s in found]
        print_json(rows)
        return
    if not found:
        print(f"no models in {store.models}; `fastllm pull smollm2` fetches one", file=sys.stderr)
        return
    width = max(len(s.name) for s in found)
    for stored in found:
        print(f"{stored.name:<{width}}  {size(stored.nbytes):>10}  {stored.path}")
