"""Loaded models, shared by the tests of a file, closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastllm.formats.checkpoint import Checkpoint
from fastllm.step.runner import Runner
from tests.step.models import runner_of

Load = Callable[..., Runner]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """``load(checkpoint, n_threads=2)`` is a runner that lives as long as its test file."""
    runners = []

    def loaded(checkpoint: Checkpoint, **options: Any) -> Runner:
        runners.append(runner_of(checkpoint, **options))
        return runners[-1]

    yield loaded
    for runner in runners:
        runner.close()
