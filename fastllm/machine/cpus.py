"""Which CPUs this process may use, which of them share a core, and how many threads make sense.

A second thread on the same core shares its vector units, so matrix kernels want one thread a core.
A quota is worse than too few cores: threads beyond it are all stopped together for the rest of each
period, and every barrier waits for them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastllm.machine.cgroups import ROOT, own_groups, read_int, read_text

# A core below this share of the fastest one is of another kind (an E-core, a "LITTLE" one); plain
# turbo differences between equal cores stay above it.
SAME_CLASS = 0.85


@dataclass(frozen=True)
class Core:
    """One physical core.

    Attributes
    ----------
    cpus : tuple of int
        Its usable logical CPUs, ascending.
    speed : float
        Relative to the fastest core of the machine, in (0, 1]; 1 where the system does not tell.
    """

    cpus: tuple[int, ...]
    speed: float

    @property
    def fast(self) -> bool:
        """Whether it belongs to the fastest class of a hybrid processor."""
        return self.speed >= SAME_CLASS


def usable_cpus(root: Path = ROOT) -> list[int]:
    """Return the logical CPUs that affinity and cpusets leave to this process, ascending.

    Parameters
    ----------
    root : Path
        Stands for ``/``; with another one /proc/self/status is read instead of asking the kernel.

    Returns
    -------
    list of int
        Never empty.
    """
    if root == ROOT and hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            return sorted(os.sched_getaffinity(0))
    found = re.search(r"^Cpus_allowed_list:(.*)$", read_text(root / "proc/self/status"), re.M)
    cpus = parse_cpu_list(found[1]) if found else []
    return cpus or list(range(os.cpu_count() or 1))


def physical_cores(cpus: Sequence[int], root: Path = ROOT) -> list[Core]:
    """Group logical CPUs by the core they run on.

    Parameters
    ----------
    cpus : sequence of int
        Usually `usable_cpus`.
    root : Path
        Stands for ``/``.

    Returns
    -------
    list of Core
        Fastest first, then by CPU number. Where /sys tells nothing, every CPU is a core.
    """
    base = root / "sys/devices/system/cpu"
    members: dict[tuple[object, ...], list[int]] = {}
    for cpu in sorted(set(cpus)):
        members.setdefault(_core_of(base / f"cpu{cpu}", cpu), []).append(cpu)
    speeds = {cpu: _speed(base / f"cpu{cpu}") for cpu in set(cpus)}
    top = max([speed for speed in speeds.values() if speed], default=0)
    cores = []
    for siblings in members.values():
        speed = max(speeds[cpu] for cpu in siblings)
        cores.append(Core(tuple(siblings), speed / top if speed else 1.0))
    return sorted(cores, key=lambda core: (-core.speed, core.cpus))


def cgroup_quota(root: Path = ROOT) -> float | None:
    """Return how many CPUs the control groups grant, or None without a limit.

    Parameters
    ----------
    root : Path
        Stands for ``/``.

    Returns
    -------
    float or None
        The smallest quota / period on the way up, such as 1.5.
    """
    quotas = []
    for group in own_groups("cpu", root):
        for folder in group.path:
            if group.version == 2:
                quota, period = _cpu_max(read_text(folder / "cpu.max"))
            else:
                quota = read_int(folder / "cpu.cfs_quota_us")
                period = read_int(folder / "cpu.cfs_period_us")
            if quota and period and quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def default_threads(root: Path = ROOT) -> int:
    """Return how many compute threads fit: one a physical core, within affinity and quota.

    Parameters
    ----------
    root : Path
        Stands for ``/``.

    Returns
    -------
    int
        At least 1; a quota is rounded down.
    """
    cpus = usable_cpus(root)
    cores = len(physical_cores(cpus, root))
    quota = cgroup_quota(root)
    return max(1, min(len(cpus), cores, cores if quota is None else math.floor(quota)))


def parse_cpu_list(text: str) -> list[int]:
    """Read the kernel's list format.

    Parameters
    ----------
    text : str
        Such as "0-3,8,10-11"; parts that are not numbers are skipped.

    Returns
    -------
    list of int
        Ascending, without repetition.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match:
            cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(cpus)


def _core_of(folder: Path, cpu: int) -> tuple[object, ...]:
    """Return what all CPUs of one core have in common."""
    topology = folder / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older name
        siblings = parse_cpu_list(read_text(topology / name))
        if cpu in siblings:
            return tuple(siblings)
    package, core = read_int(topology / "physical_package_id"), read_int(topology / "core_id")
    if package is not None and core is not None and core >= 0:
        return ("core", package, core)
    return ("cpu", cpu)


def _speed(folder: Path) -> int:
    """Return a number that compares cores of this machine, 0 for unknown."""
    capacity = read_int(folder / "cpu_capacity")  # the scheduler's own figure, 1024 = fastest
    frequency = read_int(folder / "cpufreq/cpuinfo_max_freq")
    return max(capacity or frequency or 0, 0)


def _cpu_max(text: str) -> tuple[int | None, int | None]:
    """Split v2's "quota period"; (None, None) for "max"."""
    match = re.fullmatch(r"(\d{1,18}) (\d{1,18})\s*", text)
    return (int(match[1]), int(match[2])) if match else (None, None)
