import io
import sys

import pytest

from fastllm import LLM
from tests.fakes import FakeRunner, FakeTemplate, FakeTokenizer


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """No test sees the user's models."""
    monkeypatch.setenv("FASTLLM_HOME", str(tmp_path / "home"))


@pytest.fixture
def fake(monkeypatch):
    """Every model is a fake one; returns the fake LLMs that commands opened, and how."""
    opened = []

    class Opened(list):
        model = None  # set it to script the answers
        template = FakeTemplate()

    opened = Opened()

    def build(name, **options):
        runner = FakeRunner(n_ctx=options["n_ctx"] or 512)
        runner.n_threads = options["n_threads"] or 1
        if opened.model is not None:
            runner.model = opened.model
        llm = LLM._of(runner, FakeTokenizer(), opened.template, name)
        opened.append((llm, options))
        return llm

    monkeypatch.setattr("fastllm.llm.LLM", build)
    return opened


@pytest.fixture
def stdin(monkeypatch):
    """Replace stdin by bytes, from a pipe or typed at a terminal."""

    def replace(raw: bytes, *, terminal=False):
        stream = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    return replace
