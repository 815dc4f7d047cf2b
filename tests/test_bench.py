"""The tools of bench/ run: a figure nobody can repeat is none. Results are not judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_gguf

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "limit", ["memory_rate(1, 1 << 20, 0.001)", "integer_peak(1, 0.001)"], ids=lambda x: x[:6]
)
def test_limits_are_measured_in_a_process_that_runs_the_engine(limit):
    code = f"import fastllm.step.runner\nfrom bench import limits\nprint(limits.{limit})"
    assert float(run("-c", code)) > 0


@pytest.mark.parametrize("what", [("-n", "3", "-d", "5"), ("-p", "70")], ids=["answer", "prompt"])
def test_a_step_is_profiled_op_by_op(tmp_path, what):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    out = run("-m", "bench.profile_step", str(path), "-t", "2", "-r", "1", *what)
    rows = {
        cells[0].strip(): cells[1].strip()
        for line in out.splitlines()
        if len(cells := line.strip("|").split("|")) == 5
    }
    assert rows["mlp.down_proj"] == str(tiny_gguf.LAYERS)
    assert rows["norm"] == str(2 * tiny_gguf.LAYERS + 1)
    assert {"attention", "self_attn.q_proj", "rope"} <= set(rows)


def test_two_models_at_once(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    out = run("-m", "bench.two_models", str(path), "-t", "1", "-n", "20", "-r", "1")
    assert re.search(r"^median share \d\.\d\d", out, re.MULTILINE)


def test_a_whole_process_beside_another(tmp_path):
    path, other = tmp_path / "tiny.gguf", tmp_path / "fastllm"
    tiny_gguf.write(path, tokenizer=True)
    other.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m fastllm "$@"\n')
    other.chmod(0o755)
    out = run("-m", "bench.whole_process", str(path), "-r", "1", "--against", f"before={other}")
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["fastllm", "before"]


def test_ours_beside_another_version(tmp_path):
    path, other = tmp_path / "tiny.gguf", tmp_path / "fastllm"
    tiny_gguf.write(path)
    other.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m fastllm "$@"\n')
    other.chmod(0o755)
    options = ["-p", "8", "-n", "4", "-t", "1", "--rounds", "1", "-o", "json"]
    out = run("bench/compare.py", str(path), "--peer", f"before={other}", *options)
    tests = json.loads(out)["tests"]
    assert [test["name"] for test in tests] == ["pp8", "tg4"]
    assert all(test["peers"]["before"]["ratio"]["median"] > 0 for test in tests)
