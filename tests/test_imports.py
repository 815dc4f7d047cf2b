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


def test_every_room_can_be_imported_where_posix_is_missing(python) -> None:
    """As on Windows: its Python has no such modules, and fewer functions in `os` and `signal`."""
    code = (
        "import importlib, os, pkgutil, signal, sys\n"
        "import subprocess, tempfile, multiprocessing.pool, asyncio\n"  # the library's own
        "import numpy, click, jinja2, tokenizers\n"
        "for name in ('fcntl', 'resource', 'termios', 'tty', 'pwd', 'grp', 'readline'):\n"
        "    sys.modules[name] = None\n"
        "for home, names in ((os, ('uname', 'fork', 'pread', 'preadv', 'sched_getaffinity',\n"
        "                          'sched_setaffinity', 'sysconf', 'O_DIRECT', 'posix_fadvise')),\n"
        "                    (signal, ('SIGKILL', 'SIGHUP', 'SIGALRM', 'pthread_sigmask'))):\n"
        "    for name in names: delattr(home, name)\n"
        "sys.modules['fastllm._ext.reader'] = None\n"  # Linux only; it has twins
        "import fastllm\n"
        "compiled = []\n"
        "for module in pkgutil.walk_packages(fastllm.__path__, 'fastllm.'):\n"
        "    if module.name in ('fastllm.__main__', 'fastllm._ext.reader'): continue\n"
        "    try: importlib.import_module(module.name)\n"
        "    except fastllm.KernelError: compiled.append(module.name)\n"  # a build process's own
        "assert all(name.startswith('fastllm.kernels.') for name in compiled), compiled\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
