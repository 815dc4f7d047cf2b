"""README's table of commands says what the command line takes, no more and no less."""

import re
from pathlib import Path

import click
import pytest

from fastllm.cli import main

README = Path(__file__).parents[2] / "README.md"


def table():
    """Yield (command, arguments, {flag: choices}) of each row."""
    section = README.read_text(encoding="utf-8").split("## Command line")[1].split("\n## ")[0]
    for line in section.splitlines():
        match = re.match(r"\| `(\w+) ?(.*?)` \| .+ \| (?:`(.+)`)? ?\|$", line)
        if match:
            name, arguments, flags = match.groups()
            words = (flags or "").replace("\\|", "|").split()
            found = {}
            for word in words:
                if word.startswith("-"):
                    last = word
                    found[word] = ()
                else:
                    found[last] = tuple(word.split("|"))
            yield name, arguments, found


ROWS = list(table())


def test_every_command_has_a_row():
    assert [name for name, _, _ in ROWS] == list(main.COMMANDS)


@pytest.mark.parametrize(("name", "arguments", "flags"), ROWS)
def test_a_row_agrees_with_the_command(name, arguments, flags):
    command = main.cli.get_command(None, name)
    ctx = click.Context(command, info_name=name)
    taken = [p for p in command.params if isinstance(p, click.Argument)]
    assert arguments.split() == [p.make_metavar(ctx) for p in taken]
    options = [
        p for p in command.params if isinstance(p, click.Option) and "--verbose" not in p.opts
    ]
    known = {opt: option for option in options for opt in option.opts}
    assert flags.keys() <= known.keys()
    missing = [option.opts for option in options if not flags.keys() & set(option.opts)]
    assert missing == []
    for flag, choices in flags.items():
        if choices:
            assert list(choices) == list(known[flag].type.choices)
