"""CPUs, cores, quotas: on trees of machines that are not this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastllm.machine.cpus import (
    Core,
    cgroup_quota,
    default_threads,
    parse_cpu_list,
    physical_cores,
    usable_cpus,
)
from tests.machine.trees import v1, v2, write

CPU = "sys/devices/system/cpu/cpu"


def machine(root: Path, allowed: str, siblings: list[str], **more: dict[int, str]) -> Path:
    """CPU i has the sibling list ``siblings[i]``; `more` maps a file to its text per CPU."""
    files = {"proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{allowed}\n"}
    for cpu, text in enumerate(siblings):
        files[f"{CPU}{cpu}/topology/core_cpus_list"] = text + "\n"
    for name, values in more.items():
        for cpu, text in values.items():
            files[f"{CPU}{cpu}/{name}"] = text + "\n"
    return write(root, files)


def test_hyperthreads(tmp_path: Path) -> None:
    root = machine(tmp_path, "0-7", ["0,4", "1,5", "2,6", "3,7"] * 2)
    cpus = usable_cpus(root)
    assert cpus == list(range(8))
    assert [core.cpus for core in physical_cores(cpus, root)] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert default_threads(root) == 4


def test_affinity_to_both_threads_of_one_core(tmp_path: Path) -> None:
    root = machine(tmp_path, "1,5", ["0,4", "1,5", "2,6", "3,7"] * 2)
    assert physical_cores(usable_cpus(root), root) == [Core((1, 5), 1.0)]
    assert default_threads(root) == 1


def test_half_of_a_core(tmp_path: Path) -> None:
    root = machine(tmp_path, "4-5", ["0,4", "1,5", "2,6", "3,7"] * 2)
    assert [core.cpus for core in physical_cores(usable_cpus(root), root)] == [(4,), (5,)]


@pytest.mark.parametrize(
    ("name", "fast", "slow"),
    [("cpu_capacity", "1024", "446"), ("cpufreq/cpuinfo_max_freq", "5200000", "3900000")],
)
def test_hybrid(tmp_path: Path, name: str, fast: str, slow: str) -> None:
    """Two small cores first, then two large ones with two threads each."""
    speeds = dict.fromkeys((0, 1), slow) | dict.fromkeys((2, 3, 4, 5), fast)
    root = machine(tmp_path, "0-5", ["0", "1", "2-3", "2-3", "4-5", "4-5"], **{name: speeds})
    cores = physical_cores(usable_cpus(root), root)
    assert [core.cpus for core in cores] == [(2, 3), (4, 5), (0,), (1,)]
    assert [core.fast for core in cores] == [True, True, False, False]
    assert cores[2].speed == pytest.approx(int(slow) / int(fast))
    assert default_threads(root) == 4


def test_turbo_differences_are_not_a_class(tmp_path: Path) -> None:
    speeds = {0: "5000000", 1: "4700000"}
    root = machine(tmp_path, "0-1", ["0", "1"], **{"cpufreq/cpuinfo_max_freq": speeds})
    assert all(core.fast for core in physical_cores([0, 1], root))


def test_old_and_missing_topology(tmp_path: Path) -> None:
    old = write(
        tmp_path / "old", {f"{CPU}{i}/topology/thread_siblings_list": "0-1" for i in (0, 1)}
    )
    assert [core.cpus for core in physical_cores([0, 1], old)] == [(0, 1)]
    ids = {f"{CPU}{i}/topology/core_id": str(i // 2) for i in range(8)}
    ids |= {f"{CPU}{i}/topology/physical_package_id": str(i // 4) for i in range(8)}
    numbered = write(tmp_path / "ids", ids)
    assert len(physical_cores(range(8), numbered)) == 4
    assert [core.cpus for core in physical_cores([3, 1], tmp_path)] == [(1,), (3,)]
    assert physical_cores([], tmp_path) == []


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000", None),
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("max", None),
        ("1 0", None),
        ("", None),
    ],
)
def test_v2_quota(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cgroup_quota(v2(tmp_path, "/job", **{"job/cpu__max": text})) == quota


def test_smallest_quota_on_the_way_up(tmp_path: Path) -> None:
    files = {"a/cpu__max": "200000 100000", "a/b/cpu__max": "max 100000"}
    files["a/b/c/cpu__max"] = "400000 100000"
    assert cgroup_quota(v2(tmp_path, "/a/b/c", **files)) == 2.0


def test_v1_quota(tmp_path: Path) -> None:
    files = {"pod/cpu__cfs_quota_us": "250000", "pod/cpu__cfs_period_us": "100000"}
    files |= {"pod/box/cpu__cfs_quota_us": "-1", "pod/box/cpu__cfs_period_us": "100000"}
    assert cgroup_quota(v1(tmp_path, "cpu", "/pod/box", **files)) == 2.5


@pytest.mark.parametrize(
    ("quota", "threads"), [("350000", 3), ("99999", 1), ("900000", 4), ("400000", 4)]
)
def test_default_threads_within_the_quota(tmp_path: Path, quota: str, threads: int) -> None:
    root = machine(tmp_path, "0-7", ["0,4", "1,5", "2,6", "3,7"] * 2)
    v2(root, "/job", **{"job/cpu__max": f"{quota} 100000"})
    assert default_threads(root) == threads


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]),
        ("5", [5]),
        ("", []),
        ("3-1", []),
        ("x,2,-", [2]),
        ("1,1-2", [1, 2]),
    ],
)
def test_cpu_lists(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus


def test_without_proc(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == list(range(os.cpu_count() or 1))
    assert cgroup_quota(tmp_path) is None
    assert default_threads(tmp_path) == (os.cpu_count() or 1)


def test_here() -> None:
    cpus = usable_cpus()
    if hasattr(os, "sched_getaffinity"):
        assert cpus == sorted(os.sched_getaffinity(0))
    assert sorted(cpu for core in physical_cores(cpus) for cpu in core.cpus) == cpus
    assert 1 <= default_threads() <= len(cpus)
