"""How much memory this process may use, how much of it is free, and how much it uses.

The smallest limit on the path up through the control groups counts, the process's own (``ulimit``)
and the machine's memory. What page cache holds is free for the taking: the kernel drops clean pages
before it kills anyone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastllm.machine.cgroups import ROOT, own_groups, read_int, read_text

# v1 writes 0x7ffffffffffff000 for "no limit"; no machine has an exbibyte.
UNLIMITED = 1 << 60
# Where even the size of the machine is hidden: small enough for any machine that runs a model.
UNKNOWN_BYTES = 4 << 30
# Stacks of threads and the heaps that the C library sets aside for each: mapped, hardly in RAM.
# Limits of the process itself count what is mapped.
MAPPED_BYTES = 64 << 20


def limit_bytes(root: Path = ROOT) -> tuple[int, str]:
    """Return the most memory this process can ever have, and who says so.

    Parameters
    ----------
    root : Path
        Stands for ``/``.

    Returns
    -------
    nbytes : int
    source : str
        "MemTotal", the file of the limit, "ulimit -v", "ulimit -d", or "unknown" (then 4 GiB is a
        guess).
    """
    best = _machine_bytes("MemTotal", root)
    source = "MemTotal" if best else "unknown"
    best = best or UNKNOWN_BYTES
    for limit, file, _ in _limits(root):
        if limit < best:
            best, source = limit, str(file)
    for limit, name, _ in _own_limits(root):
        if limit < best:
            best, source = limit, name
    return best, source


def available_bytes(root: Path = ROOT) -> int:
    """Return how much more memory this process can take without swapping or being killed.

    Parameters
    ----------
    root : Path
        Stands for ``/``.

    Returns
    -------
    int
        The least of the machine's MemAvailable and, for every limit on the way up and the process's
        own, limit minus use (page cache not counted); never negative.
    """
    own = [limit - used for limit, _, used in _own_limits(root)]
    return max(min(_shared_bytes(root), *own), 0) if own else _shared_bytes(root)


def room_bytes(base: int, root: Path = ROOT) -> int:
    """Return how much this process can have in all.

    Parameters
    ----------
    base : int
        Bytes for interpreter and libraries that are counted as a part of it: what the process has
        of them already is not taken from what is free.
    root : Path
        Stands for ``/``.

    Returns
    -------
    int
        Of memory that is shared with others, in RAM; of the process's own limits, mapped.
    """
    room = [_shared_bytes(root) + min(anonymous_bytes(root), base)]
    for limit, _, used in _own_limits(root):
        room.append(limit - max(used, base + MAPPED_BYTES) + base)
    return max(min(room), 0)


def _shared_bytes(root: Path) -> int:
    """Return what the machine and the control groups have left for everybody in them."""
    free = [_machine_bytes("MemAvailable", root) or limit_bytes(root)[0]]
    for limit, file, version in _limits(root):
        names = ("memory.current", "") if version == 2 else ("memory.usage_in_bytes", "total_")
        used = read_int(file.parent / names[0]) or 0
        stat = read_text(file.parent / "memory.stat")
        cache = sum(_stat(stat, f"{names[1]}{kind}_file") for kind in ("inactive", "active"))
        free.append(limit - max(used - cache, 0))
    return max(min(free), 0)


def anonymous_bytes(root: Path = ROOT) -> int:
    """Return the memory this process has in RAM that no file backs, 0 if unknown.

    It is what `available_bytes` counts as used; pages of libraries can be dropped as caches can.

    Parameters
    ----------
    root : Path
        Stands for ``/``.
    """
    return _kib(read_text(root / "proc/self/status"), "RssAnon")


def peak_rss_bytes(root: Path = ROOT) -> int:
    """Return the most memory this process ever had in RAM, 0 if unknown.

    Parameters
    ----------
    root : Path
        Stands for ``/``.
    """
    peak = _kib(read_text(root / "proc/self/status"), "VmHWM")
    if not peak and root == ROOT:
        try:
            import resource
            import sys
        except ImportError:  # Windows
            return 0
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def _limits(root: Path) -> list[tuple[int, Path, int]]:
    """Return (limit, file, version) of every limit on the way up."""
    found = []
    for group in own_groups("memory", root):
        # memory.high throttles where memory.max kills; neither is a place to live above.
        names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
        for folder in group.path:
            for name in names:
                limit = read_int(folder / name)
                if limit is not None and 0 <= limit < UNLIMITED:
                    found.append((limit, folder / name, group.version))
    return found


def _own_limits(root: Path) -> list[tuple[int, str, int]]:
    """Return (limit, name, use) of what the process itself may map, as batch systems set it."""
    limits, status = read_text(root / "proc/self/limits"), read_text(root / "proc/self/status")
    found = []
    for title, name, used in (
        ("Max address space", "ulimit -v", "VmSize"),
        ("Max data size", "ulimit -d", "VmData"),
    ):
        soft = re.search(rf"^{title} +(\d+) ", limits, re.M)
        if soft:  # else "unlimited"
            found.append((int(soft[1]), name, _kib(status, used)))
    return found


def _machine_bytes(key: str, root: Path) -> int:
    """Return a line of /proc/meminfo, or what the C library says; 0 if unknown."""
    nbytes = _kib(read_text(root / "proc/meminfo"), key)
    if nbytes or root != ROOT:
        return nbytes
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _kib(text: str, key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.M)
    return int(found[1]) << 10 if found else 0


def _stat(text: str, key: str) -> int:
    found = re.search(rf"^{key} (\d+)$", text, re.M)
    return int(found[1]) if found else 0
