"""Where baselines lie, which model is measured, and what a saved baseline says of the machine."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.logger import PytestBenchmarkWarning

from fastllm.hub.store import Store

BASELINE = Path(__file__).parent / "baseline"
DEFAULT_STORAGE = "file://./.benchmarks"  # pytest-benchmark's own


def pytest_configure(config: pytest.Config) -> None:
    """Save and compare in bench/baseline unless told otherwise."""
    if getattr(config.option, "benchmark_storage", None) == DEFAULT_STORAGE:
        config.option.benchmark_storage = BASELINE.as_uri()
    # Another machine than the baseline's is a remark, not an error: while pytest configures itself
    # (the baseline is read then), and later.
    warnings.filterwarnings("default", category=PytestBenchmarkWarning)
    config.addinivalue_line(
        "filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning"
    )


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Keep what decides speed, leave out who and when: a baseline is a public file."""
    from importlib.metadata import version

    from fastllm.kernels.road import choose_road
    from fastllm.machine.cpus import physical_cores, usable_cpus

    cpu = machine_info.get("cpu", {})
    for name in set(machine_info) - {"machine", "python_version", "system"}:
        del machine_info[name]
    machine_info["cpu"] = cpu.get("brand_raw", "unknown")
    machine_info["cores"] = len(physical_cores(usable_cpus()))
    machine_info["road"] = choose_road().name
    machine_info["llvmlite"] = version("llvmlite")


@pytest.fixture(scope="session")
def model() -> Path:
    """The model that is measured: $FASTLLM_BENCH_MODEL, else the pulled smollm2."""
    chosen = os.environ.get("FASTLLM_BENCH_MODEL")
    if chosen:
        return Path(chosen)
    path = Store().find("smollm2")
    if path is None:
        pytest.skip("no model: fastllm pull smollm2, or let FASTLLM_BENCH_MODEL name a file")
    return path


@pytest.fixture(params=(1, 2), ids=("1t", "2t"))
def num_threads(request: pytest.FixtureRequest) -> int:
    """One thread, and two where there are two cores."""
    from fastllm.machine.cpus import physical_cores, usable_cpus

    if request.param > len(physical_cores(usable_cpus())):
        pytest.skip("this machine has one core")
    wanted: int = request.param
    return wanted
