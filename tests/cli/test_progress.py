import re
import time

import pytest

from fastllm.cli import progress


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(progress, "BAR_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "LINE_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)


def until(condition):
    """Wait for the timer's thread."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_quick_work_shows_nothing(capsys):
    with progress.ProgressLine() as line:
        for share in (0.0, 0.5, 1.0):
            line("loading", share)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert line._timer is None


def test_a_log_gets_lines(soon, capsys):
    with progress.ProgressLine() as line:
        line("compiling", 0.0)
        until(lambda: line._next_line_s < float("inf"))
        line("compiled one", 0.5)
    captured = capsys.readouterr()
    assert captured.err == "compiling: 0%\ncompiled one: 50%\n"
    assert captured.out == ""


def test_a_terminal_gets_one_bar_that_goes_away(soon, capsys):
    with progress.ProgressLine() as line:
        line._is_terminal = True
        line("compiling", 0.0)
        until(lambda: line._task is not None)
        line("compiled one", 0.5)
        line("compiled two", 1.5)
        (task,) = line._bar.tasks
        assert (task.description, task.completed) == ("compiled two", 1.0)
        assert re.match("compil", task.description)
    assert line._bar is None
    assert capsys.readouterr().out == ""
