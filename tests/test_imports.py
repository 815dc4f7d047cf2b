"""The import contract of pyproject.toml holds, and ``import fastllm`` stays light."""

from __future__ import annotations

import json
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_contract(python) -> None:
    # a process of its own: the linter changes sys.path and switches existing loggers off
    code = (
        "import sys\n"
        "from importlinter.cli import lint_imports\n"
        "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True))\n"
    )
    done = python(code, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_is_light(python) -> None:
    done = python("import fastllm, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    heavy = {"numba", "llvmlite", "numpy", "jinja2", "tokenizers", "click", "rich"}
    assert heavy.isdisjoint(modules)
    rooms = [name for name in modules if name.startswith("fastllm.")]
    assert rooms == []


def test_public_names_load_without_numba(python) -> None:
    code = (
        "import fastllm, sys\n"
        "for name in fastllm.__all__: getattr(fastllm, name)\n"
        "assert not {'numba', 'llvmlite'} & set(sys.modules), 'heavy'\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
