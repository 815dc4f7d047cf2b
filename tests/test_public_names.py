"""What ``import fastllm`` offers, and what it must not pull in."""

import json
import subprocess
import sys

import fastllm


def test_public_names_are_sorted_complete_and_there():
    names = [name for name in fastllm.__all__ if name != "__version__"]
    # Ruff's order for __all__: constants, classes, the rest; each in alphabetical order.
    assert fastllm.__all__ == [*sorted(names, key=lambda n: (not n.isupper(), n)), "__version__"]
    assert set(names) == set(fastllm._HOME_OF)
    for name in fastllm.__all__:
        assert getattr(fastllm, name) is not None
    assert set(fastllm.__all__) <= set(dir(fastllm))
    assert not hasattr(fastllm, "nothing")


def test_every_error_is_public():
    from fastllm import errors

    classes = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert classes <= set(fastllm.__all__)


def modules_after(code):
    """Modules loaded by `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    loaded = modules_after("import fastllm")
    assert not loaded & {"numpy", "numba", "llvmlite", "click", "rich", "tokenizers"}


def test_the_public_classes_need_no_compiler():
    loaded = modules_after("from fastllm import LLM, SamplingParams; SamplingParams()")
    assert not loaded & {"numba", "llvmlite", "tokenizers", "jinja2", "huggingface_hub"}


def test_help_imports_no_command():
    code = "from fastllm.cli.main import run\nassert run(['--help']) == 0"
    assert not modules_after(code) & {"numpy", "numba", "rich", "fastllm.cli.run", "fastllm.llm"}
