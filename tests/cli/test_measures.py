"""bench and perplexity: the exact shapes of their output."""

import json
import math

import pytest

from fastllm.cli import main
from tests.fakes import logits_after


def test_bench_json(fake, capsys):
    argv = ["bench", "m", "-p", "20,5", "-n", "6", "-r", "3", "-t", "2", "-o", "json"]
    assert main.run(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "model", "model_bytes", "threads", "tests", "load_s", "ttft_ms", "peak_rss_bytes", "isa"
    }  # fmt: skip
    assert [t["name"] for t in found["tests"]] == ["pp20", "pp5", "tg6"]
    for test in found["tests"]:
        assert set(test) == {"name", "tps_median", "tps_mean", "tps_sd"}
        assert test["tps_median"] > 0
    assert found["model"] == "m"
    assert found["model_bytes"] == 1_000_000
    assert found["threads"] == 2
    assert found["isa"] == "fake"
    assert found["ttft_ms"] > 0
    assert found["peak_rss_bytes"] > 1_000_000
    llm, options = fake[0]
    # One uncounted run of each test, and no prompt found its beginning in the cache.
    assert llm._runner.num_tokens == 4 * (20 + 5 + 6)
    assert options["n_ctx"] == 21


def test_bench_at_a_depth(fake, capsys):
    argv = ["bench", "m", "-p", "20", "-n", "6", "-d", "0,37", "-r", "2", "-o", "json"]
    assert main.run(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in found["tests"]] == ["pp20", "tg6", "pp20 @ d37", "tg6 @ d37"]
    llm, options = fake[0]
    assert options["n_ctx"] == 37 + 20 + 1
    # The depth is computed once a run, and not again with what is measured.
    assert llm._runner.num_tokens == 3 * (20 + 6) + 3 * (37 + 20 + 37 + 6)


def test_bench_table(fake, capsys, monkeypatch):
    monkeypatch.setattr(
        "fastllm.cli.summary.label_and_parameters", lambda model: ("llama 135M q4_1", 134_500_000)
    )
    assert main.run(["bench", "m", "-p", "8", "-n", "0", "-r", "1"]) == 0
    header, marks, row = capsys.readouterr().out.splitlines()
    names = [cell.strip() for cell in header.strip("|").split("|")]
    assert names == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["llama 135M q4_1", "1.0 MB", "134.5 M", "fake", "1", "pp8"]
    assert cells[6].endswith("± 0.00")
    assert len(header) == len(marks) == len(row)


@pytest.mark.parametrize("argv", [["-p", "x"], ["-p", "-1"], ["-p", "0", "-n", "0"], ["-r", "0"]])
def test_bench_usage(fake, argv):
    assert main.run(["bench", "m", *argv]) == 2


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick <mark> brown fox\njumps over the lazy dog.\n")
    return path


def test_perplexity_json(fake, text_file, capsys):
    argv = ["perplexity", "m", str(text_file), "-c", "11", "--tokens", "45", "-o", "json"]
    assert main.run(argv) == 0
    found = json.loads(capsys.readouterr().out)
    # The fake tokenizer asks for BOS: a window is BOS and ten tokens, all ten are scored.
    text = text_file.read_bytes()[:45]
    nll = []
    for start in range(0, 40, 10):
        window = [256, *text[start : start + 10]]
        for i in range(1, 11):
            row = logits_after(window[:i]).astype(float)
            nll.append(math.log(sum(math.exp(v - row[window[i]]) for v in row)))
    assert found["tokens"] == 40
    assert found["windows"] == 4
    assert found["nll"] == pytest.approx(sum(nll) / 40)
    assert found["ppl"] == pytest.approx(math.exp(sum(nll) / 40))
    assert fake[0][1]["n_ctx"] == 11


def test_perplexity_text_and_errors(fake, text_file, capsys):
    assert main.run(["perplexity", "m", str(text_file), "-c", "20"]) == 0
    assert capsys.readouterr().out.startswith("perplexity ")
    assert main.run(["perplexity", "m", str(text_file), "-c", "300"]) == 1
    assert "does not fill a window of 300" in capsys.readouterr().err
    assert main.run(["perplexity", "m", str(text_file), "--tokens", "999"]) == 1
    assert "has only 52 tokens" in capsys.readouterr().err
    assert main.run(["perplexity", "m", str(text_file) + "x"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    text_file.write_bytes(b"\xc3")
    assert main.run(["perplexity", "m", str(text_file)]) == 1
    assert "not UTF-8" in capsys.readouterr().err
