"""From the seconds of a benchmark to rates and shares of a limit, kept in its ``extra_info``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture


def median_s(benchmark: BenchmarkFixture) -> float | None:
    """Return the median of the rounds in seconds, None where nothing was measured."""
    found: Any = benchmark.stats
    return None if found is None else float(found.stats.median)


def run_beside(
    benchmark: BenchmarkFixture,
    limit: Callable[[], float],
    run: Callable[[], object],
    **counts: int,
) -> float:
    """Run a benchmark between two measurements of its limit and return the larger of these.

    Neighbours on a shared machine come and go; a limit measured minutes ago says nothing.
    """
    before = limit()
    if counts:
        in_rounds(benchmark, run, **counts)
    else:
        benchmark(run)
    return max(before, limit())


def in_rounds(benchmark: BenchmarkFixture, run: Callable[[], object], **counts: int) -> None:
    """Run a benchmark with given ``rounds`` and ``warmup_rounds``."""
    pedantic: Any = benchmark.pedantic  # has no types
    pedantic(run, **counts)


def note_rate(
    benchmark: BenchmarkFixture, unit: str, count: float, limit_name: str, limit: float
) -> None:
    """Write ``count`` units a round as a rate in 1e9 a second, and as a share of a limit."""
    seconds = median_s(benchmark)
    if seconds is not None:
        benchmark.extra_info[unit] = round(count / seconds / 1e9, 2)
        note_limit(benchmark, count, limit_name, limit)


def note_limit(
    benchmark: BenchmarkFixture, count: float, limit_name: str, limit: float | None
) -> None:
    """Write a limit in 1e9 a second and the share of it that was reached; None: there is none."""
    seconds = median_s(benchmark)
    if seconds is not None and limit is not None:
        benchmark.extra_info[limit_name] = round(limit / 1e9, 2)
        benchmark.extra_info[f"share_of_{limit_name}"] = round(count / seconds / limit, 3)
