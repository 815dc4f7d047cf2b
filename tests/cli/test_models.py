"""pull, ls, rm, tokenize, and what needs no model at all."""

import json
from pathlib import Path

import pytest

from fastllm.cli import main, units
from fastllm.hub.registry import ENTRIES
from fastllm.hub.store import Store
from tests.fakes import FakeTokenizer


@pytest.fixture
def pulled():
    path = Store().path_of("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1500)
    return path


def test_ls_and_rm(pulled, capsys):
    assert main.run(["ls"]) == 0
    assert capsys.readouterr().out.split() == ["tiny", "1.5", "kB", str(pulled)]
    assert main.run(["ls", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [{"name": "tiny", "bytes": 1500, "path": str(pulled)}]
    assert main.run(["rm", "tiny"]) == 0
    assert not pulled.exists()
    assert "1.5 kB freed" in capsys.readouterr().err
    assert main.run(["rm", "tiny"]) == 1
    assert "no pulled model is called 'tiny'" in capsys.readouterr().err
    assert main.run(["ls"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no models" in captured.err


def test_pull_prints_the_path(pulled, capsys):
    assert main.run(["pull", "tiny"]) == 0
    assert capsys.readouterr().out == f"{pulled}\n"
    assert main.run(["pull"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ENTRIES)


@pytest.fixture
def tokenizer(monkeypatch):
    monkeypatch.setattr("fastllm.loading.load_tokenizer", lambda model: FakeTokenizer())


@pytest.mark.usefixtures("tokenizer")
def test_tokenize(stdin, capsys, tmp_path):
    assert main.run(["tokenize", "m", "ab"]) == 0
    assert capsys.readouterr().out.split() == ["256", "'<100>'", "97", "'<61>'", "98", "'<62>'"]
    assert main.run(["tokenize", "m", "a<mark>", "--json", "--no-bos", "--parse-special"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"tokens": [97, 258], "pieces": ["<61>", "<mark>"], "count": 2}
    stdin("é\n".encode())
    assert main.run(["tokenize", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [256, *"é".encode()]
    path = tmp_path / "text"
    path.write_text("b\n")
    assert main.run(["tokenize", "m", "-f", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [256, *b"b\n"]
    assert main.run(["tokenize", "m", "x", "-f", str(path)]) == 2
    stdin(b"\xff")
    assert main.run(["tokenize", "m"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_doctor_names_what_decides_speed(capsys, monkeypatch):
    monkeypatch.setattr("fastllm.cli.doctor._BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr("fastllm.cli.doctor._READ_S", 0.001)
    assert main.run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    for name in (
        *("cores", "cpus", "threads", "memory_limit_bytes", "memory_available_bytes"),
        *("memory_read_bytes_per_s", "kernel_cache_objects", "kernel_cache_bytes"),
        *("models", "models_bytes"),
    ):
        assert isinstance(facts[name], int | float), name
    assert facts["disk_read_bytes_per_s"] is None  # no model to read
    assert isinstance(facts["instructions"], list)
    assert facts["home"].endswith(str(Path("home")))
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "processor" in out
    assert "GB/s" in out


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (98_362_432, "98.4 MB"), (2.5e12, "2500.0 GB")],
)
def test_sizes(number, shown):
    assert units.size(number) == shown


def test_counts():
    assert units.count(134_515_008) == "134.5 M"
    assert units.count(1.5e9) == "1.5 B"
    assert units.count(12) == "12"
