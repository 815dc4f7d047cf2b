"""What a user waits for: a second start, the import, and the first compile on a new machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastllm
from bench.measure import in_rounds

PACKAGE = str(Path(fastllm.__file__).parents[1])


def python(*arguments: str, **environment: str) -> None:
    """Run an interpreter that finds this fastllm, to its end; its output is not wanted."""
    env = {**os.environ, "PYTHONPATH": PACKAGE, **environment}
    subprocess.run(
        [sys.executable, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )


@pytest.mark.parametrize("code", ["pass", "import fastllm"])
def test_import(benchmark: BenchmarkFixture, code: str) -> None:
    """``pass`` is Python's own start, to be subtracted."""
    benchmark.group = "import"
    in_rounds(benchmark, lambda: python("-c", code), rounds=15, warmup_rounds=2)


def test_second_start(benchmark: BenchmarkFixture, model: Path) -> None:
    """The whole process: start, load, one token, exit. Kernels and file are in their caches."""
    benchmark.group = f"second start, {model.name}"
    command = ("-m", "fastllm", "run", str(model), "-n", "1", "Hi")
    in_rounds(benchmark, lambda: python(*command), rounds=7, warmup_rounds=1)


# What smollm2 needs, and everything. (`fastllm warmup` builds everything.)
UNITS = {"smollm2": "'step', 'pack', 'mm_q4_1', 'mm_q8_0'", "all": "*build.unit_names(),"}


@pytest.mark.parametrize("what", UNITS)
def test_first_compile(benchmark: BenchmarkFixture, what: str, tmp_path: Path) -> None:
    """Build the kernels into an empty cache, once: it takes from seconds to minutes."""
    benchmark.group = "first compile"
    home = tmp_path / "home"
    code = (
        "from fastllm.kernels import build, objects\n"
        f"found = objects.addresses([{UNITS[what]}])\n"
        "print(len(found))"
    )
    in_rounds(benchmark, lambda: python("-c", code, FASTLLM_HOME=str(home)), rounds=1)
    objects = list(home.rglob("*.o"))
    benchmark.extra_info["objects"] = len(objects)
    benchmark.extra_info["mb"] = round(sum(path.stat().st_size for path in objects) / 1e6, 2)
