"""What all tests share: a home of their own, the command line, when a marked test is skipped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from fastllm.environment import home
from fastllm.hub.store import Store

USER_HOME = home()
SMOLLM2 = Store(USER_HOME).find("smollm2")

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config: pytest.Config) -> None:
    """Move fastllm's home before any test or fixture runs.

    The kernel cache stays the user's: its keys cover sources and versions, and building it anew
    for every run would cost a minute.
    """
    # Property tests try the same examples in every run; --hypothesis-profile=default explores.
    settings.register_profile("fixed", derandomize=True)
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("fixed")
    folder = tempfile.TemporaryDirectory(prefix="fastllm-tests-")
    config.add_cleanup(folder.cleanup)
    kernels = USER_HOME / "kernels"
    with contextlib.suppress(OSError):
        kernels.mkdir(parents=True, exist_ok=True)
        Path(folder.name, "kernels").symlink_to(kernels)
    os.environ["FASTLLM_HOME"] = folder.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "model": None if SMOLLM2 else "the model is not here: fastllm pull smollm2",
        "vectors": None
        if os.environ.get("FASTLLM_VOCAB_VECTORS")
        else "FASTLLM_VOCAB_VECTORS does not name llama.cpp's models/ folder",
        "transformers": None if find_spec("transformers") else "transformers is not installed",
        "slow": None if config.getoption("--slow") else "slow: run with --slow",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _user_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `model` see the user's models."""
    if request.node.get_closest_marker("model"):
        monkeypatch.setenv("FASTLLM_HOME", str(USER_HOME))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The pulled model's file; for tests marked `model`, whatever the scope of their fixtures."""
    if SMOLLM2 is None:
        pytest.skip("the model is not here: fastllm pull smollm2")
    return SMOLLM2


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Run code or arguments in a new interpreter that finds the same fastllm as this one.

    ``python("import fastllm")`` or ``python("-m", "fastllm", "--help")``; keyword arguments go to
    `subprocess.run`. The working folder is empty, so that a checkout cannot shadow the package.
    """

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        import fastllm

        command = args if len(args) > 1 else ("-c", *args)
        given = options.pop("env", None) or {}
        paths = [str(Path(fastllm.__file__).parents[1]), given.get("PYTHONPATH", "")]
        env = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        defaults = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, *command], **{"timeout": 120, **defaults, **options})

    return run
