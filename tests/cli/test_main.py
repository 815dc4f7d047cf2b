"""Help, exit codes and where text goes."""

import io
import os
import subprocess
import sys

import pytest

from fastllm.cli import main
from fastllm.errors import DownloadError


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help_that_agrees_with_the_list(name, capsys):
    assert main.run([name, "--help"]) == 0
    assert "Usage: fastllm " + name in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert main.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in main.COMMANDS)


def test_wrong_usage_is_2(capsys):
    assert main.run(["run"]) == 2
    assert main.run(["fly"]) == 2
    assert main.run(["run", "x", "y", "--temp", "hot"]) == 2
    assert capsys.readouterr().out == ""


def test_an_error_of_ours_is_one_line_and_1(capsys):
    assert main.run(["info", "no-such-model"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastllm: no model 'no-such-model'")


@pytest.mark.parametrize("argv", [["-v", "info", "nothing"], ["info", "-v", "nothing"]])
def test_verbose_shows_where(argv):
    with pytest.raises(LookupError):
        main.run(argv)


def test_an_error_of_several_lines_is_shown_in_one(monkeypatch, capsys):
    def fail(*_, **__):
        raise DownloadError("one\n  two")

    monkeypatch.setattr("fastllm.hub.resolve.pull", fail)
    assert main.run(["pull", "smollm2"]) == 1
    assert capsys.readouterr().err == "fastllm: one two\n"


def test_out_of_memory_is_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("fastllm.hub.resolve.pull", fail)
    assert main.run(["pull", "smollm2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastllm: out of memory")


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastllm.hub.resolve.pull", interrupted)
    assert main.run(["pull", "smollm2"]) == 130
    assert capsys.readouterr().out == ""


def test_a_reader_that_goes_away_is_no_noise():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "fastllm", "pull"],  # prints the names it knows
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_stdout_without_utf8_does_not_end_in_an_error(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("fastllm.hub.resolve.pull", lambda *_, **__: "/möbel")
    assert main.run(["pull", "x"]) == 0
    assert raw.getvalue() == b"/m?bel\n"
