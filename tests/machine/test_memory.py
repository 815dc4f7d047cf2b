"""Memory limits: the machine's, the container's, those of every group above it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastllm.machine import memory
from tests.machine.trees import v1, v2, write

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n"


def machine(root: Path) -> Path:
    return write(root, {"proc/meminfo": MEMINFO})


def test_bare_machine(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert memory.limit_bytes(root) == (16 * GIB, "MemTotal")
    assert memory.available_bytes(root) == 12 * GIB


def test_v2_limits_on_the_way_up(tmp_path: Path) -> None:
    files = {"a/memory__max": str(3 * GIB), "a/b/memory__max": "max"}
    files |= {"a/b/memory__high": str(4 * GIB), "a/memory__current": str(2 * GIB)}
    files |= {"a/b/memory__current": str(GIB)}
    files |= {"a/memory__stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}"}
    root = v2(machine(tmp_path), "/a/b", **files)
    assert memory.limit_bytes(root) == (3 * GIB, str(root / "sys/fs/cgroup/a/memory.max"))
    # a: 3 - (2 - 0.75) = 1.75 GiB; b: 4 - 1 = 3 GiB; the machine: 12 GiB
    assert memory.available_bytes(root) == 3 * GIB - (2 * GIB - 3 * GIB // 4)


def test_high_counts_when_it_is_lower(tmp_path: Path) -> None:
    files = {"a/memory__max": str(3 * GIB), "a/memory__high": str(2 * GIB)}
    assert memory.limit_bytes(v2(machine(tmp_path), "/a", **files))[0] == 2 * GIB


def test_v1(tmp_path: Path) -> None:
    files = {"memory__limit_in_bytes": str(0x7FFFFFFFFFFFF000)}
    files |= {"box/memory__limit_in_bytes": str(GIB), "box/memory__usage_in_bytes": str(GIB // 2)}
    files |= {"box/memory__stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}"}
    root = v1(machine(tmp_path), "memory", "/box", **files)
    assert memory.limit_bytes(root)[0] == GIB
    assert memory.available_bytes(root) == 3 * GIB // 4


def test_limits_of_the_process_itself(tmp_path: Path) -> None:
    limits = "Limit                     Soft Limit           Hard Limit           Units     \n"
    limits += f"Max data size             {3 * GIB}           unlimited            bytes     \n"
    limits += f"Max address space         {4 * GIB}           {8 * GIB}           bytes     \n"
    status = f"VmSize:\t {GIB >> 10} kB\nVmData:\t {GIB >> 12} kB\n"
    root = write(machine(tmp_path), {"proc/self/limits": limits, "proc/self/status": status})
    assert memory.limit_bytes(root) == (3 * GIB, "ulimit -d")
    assert memory.available_bytes(root) == 3 * GIB - GIB // 4
    limits = limits.replace(str(3 * GIB), "unlimited")
    write(root, {"proc/self/limits": limits})
    assert memory.limit_bytes(root) == (4 * GIB, "ulimit -v")
    assert memory.available_bytes(root) == 3 * GIB


def test_memory_that_the_process_has_already_counts_as_its_own(tmp_path: Path) -> None:
    status = f"RssAnon:\t {50 << 10} kB\nVmSize:\t {300 << 10} kB\n"
    root = write(machine(tmp_path), {"proc/self/status": status})
    assert memory.room_bytes(200 << 20, root) == 12 * GIB + (50 << 20)
    assert memory.room_bytes(20 << 20, root) == 12 * GIB + (20 << 20)  # the rest is of others
    write(root, {"proc/self/limits": f"Max address space         {GIB}      {GIB}      bytes\n"})
    mapped = memory.MAPPED_BYTES
    assert memory.room_bytes(300 << 20, root) == memory.room_bytes(400 << 20, root) == GIB - mapped
    assert memory.room_bytes(200 << 20, root) == GIB - (100 << 20)
    assert memory.room_bytes(0, root) == memory.available_bytes(root) == GIB - (300 << 20)


@pytest.mark.parametrize("limit", ["max", "", str(0x7FFFFFFFFFFFF000), "-1", "lots"])
def test_no_limit(tmp_path: Path, limit: str) -> None:
    root = v2(machine(tmp_path), "/a", **{"a/memory__max": limit})
    assert memory.limit_bytes(root) == (16 * GIB, "MemTotal")


def test_use_above_the_limit(tmp_path: Path) -> None:
    files = {"a/memory__max": "100", "a/memory__current": "200"}
    assert memory.available_bytes(v2(machine(tmp_path), "/a", **files)) == 0


def test_nothing_known(tmp_path: Path) -> None:
    assert memory.limit_bytes(tmp_path) == (memory.UNKNOWN_BYTES, "unknown")
    assert memory.available_bytes(tmp_path) == memory.UNKNOWN_BYTES
    assert memory.anonymous_bytes(tmp_path) == memory.peak_rss_bytes(tmp_path) == 0


def test_rss(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/status": "VmPeak:\t 9 kB\nVmHWM:\t   20 kB\nRssAnon:\t   10 kB\n"})
    assert memory.anonymous_bytes(tmp_path) == 10 << 10
    assert memory.peak_rss_bytes(tmp_path) == 20 << 10


def test_here() -> None:
    limit, source = memory.limit_bytes()
    assert source
    assert 0 < memory.available_bytes() <= limit
    assert memory.peak_rss_bytes() > memory.anonymous_bytes() > 1 << 20
    if Path("/proc/meminfo").exists():
        total = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) << 10
        assert limit <= total
