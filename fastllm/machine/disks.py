"""How fast a file can be read, found by reading some of it.

A probe for `doctor` and for plans, not a benchmark: a third of a second of 1 MiB reads at random
places, several at once, past the page cache where the file system allows it. A virtual machine's
disk may still be cached by its host, and neighbours move the figure by 20 % from second to second.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import threading
import time
from dataclasses import dataclass

BLOCK_BYTES = 1 << 20
_HUGE_BYTES = 2 << 20


@dataclass(frozen=True)
class DiskRate:
    """What a probe found.

    Attributes
    ----------
    bytes_per_s : float
        0 where nothing could be read.
    direct : bool
        Read past the page cache. If False the file system has no ``O_DIRECT``, and the rate is
        that of memory as far as the file was cached.
    """

    bytes_per_s: float
    direct: bool


def read_rate(path: str | os.PathLike[str], seconds: float = 0.3, num_threads: int = 4) -> DiskRate:
    """Measure how fast a file is read.

    Parameters
    ----------
    path : str or os.PathLike
        At least some MiB large to mean anything.
    seconds : float
        How long to read.
    num_threads : int
        Reads in flight.

    Returns
    -------
    DiskRate
        A rate of 0 where the file cannot be read at all.
    """
    try:
        fd, direct = _open(path)
    except OSError:
        return DiskRate(0.0, False)
    try:
        num_blocks = os.fstat(fd).st_size // BLOCK_BYTES
        if not num_blocks or not hasattr(os, "preadv"):
            return DiskRate(0.0, direct)
        counts = [0] * num_threads
        start = time.perf_counter()
        threads = [
            threading.Thread(target=_read, args=(fd, num_blocks, start + seconds, counts, i))
            for i in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return DiskRate(sum(counts) / (time.perf_counter() - start), direct)
    finally:
        os.close(fd)


def _open(path: str | os.PathLike[str]) -> tuple[int, bool]:
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    with contextlib.suppress(OSError, AttributeError):
        return os.open(path, flags | os.O_DIRECT), True
    return os.open(path, flags), False


def _read(fd: int, num_blocks: int, deadline: float, counts: list[int], index: int) -> None:
    """Read random blocks until the time is up; add the bytes to ``counts[index]``."""
    # A huge page each: into small pages the disk gets one segment for every 4 KiB.
    with mmap.mmap(-1, 2 * _HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        address = ctypes.addressof(ctypes.c_uint8.from_buffer(region))
        start = -address % _HUGE_BYTES
        with contextlib.suppress(OSError, AttributeError):
            region.madvise(mmap.MADV_HUGEPAGE, start, _HUGE_BYTES)
        whole = memoryview(region)
        block = whole[start : start + BLOCK_BYTES]
        order = random.Random(index)
        with contextlib.suppress(OSError):
            while time.perf_counter() < deadline:
                counts[index] += os.preadv(fd, [block], order.randrange(num_blocks) * BLOCK_BYTES)
        block.release()
        whole.release()
