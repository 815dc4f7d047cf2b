"""What this machine can do at most, measured beside whatever is compared with it.

* `memory_rate`: bytes per second that threads read from a buffer, one XOR for every 64 bytes. A
  buffer as large as the weights of a model gives the limit of generation: a token reads them once.
* `integer_peak`: operations per second of the road's vector dot product with all operands in
  registers (amx, avx512), or with one operand from the first-level cache (the other roads, where a
  product of registers would be moved out of the loop). An addition and a multiplication are two.
* `tile_peak`: the same of AMX tile products, on the road amx. Scales are applied by vector
  instructions all the same, so no quantized format comes near.
* `disk_rate`: bytes per second of a file past the page cache.

``python -m bench.limits`` prints them. The loops are written with the project's own emitter and
compiled in this process for the road's target, which numba takes from the environment when it is
imported; nothing else in a benchmark process imports numba before.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

from fastllm.kernels.road import choose_road
from fastllm.machine.cpus import physical_cores, usable_cpus
from fastllm.machine.disks import DiskRate, read_rate
from fastllm.memory.arena import Arena

# Independent sums. avx512: latency 4-5 cycles on two units, rounded up. Elsewhere a sum takes two
# or four registers of sixteen and its addition one cycle.
CHAINS, CHAINS_SPLIT = 12, 3
OPS_PER_DOT = 2 * 64  # Emitter.dp: 16 lanes of 4 products
TILES = 6  # sums; two of the eight tile registers are operands
OPS_PER_TILE = 2 * 16 * 16 * 64
STRIDE = 512  # bytes read per round of the loop
SECONDS = 0.1  # of one measurement
# Of one pass, at least: waking the other threads takes up to 0.1 ms, and that is no limit.
PASS_SECONDS = 0.005

_AREA = 8192  # of a thread: operands, results, tile shapes

Work = Callable[[int], object]


# Before anything is pinned: the CPU of each core that a thread may have.
_CPUS = [core.cpus[0] for core in physical_cores(usable_cpus())]


class Crew:
    """Threads that do their shares of a job together, each on a core; thread 0 is the caller.

    Pinned, because with a stranger busy on one core the scheduler keeps two threads on the other
    for seconds, and the limit of two threads would be that of one.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads)

    def __call__(self, work: Work) -> None:
        """Run ``work(thread)`` on every thread and wait for all."""
        others = [self._pool.submit(self._on_core, work, n) for n in range(1, self.num_threads)]
        work(0)
        for other in others:
            other.result()

    def _on_core(self, work: Work, thread: int) -> None:
        pin(thread)
        work(thread)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


def pin(thread: int) -> None:
    """Keep the calling thread on the core of its number, where the system can and has enough."""
    if hasattr(os, "sched_setaffinity") and thread < len(_CPUS):
        os.sched_setaffinity(0, {_CPUS[thread]})


@contextmanager
def crew(num_threads: int) -> Iterator[Crew]:
    """Give a `Crew` for a while; the caller may run anywhere again afterwards."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    threads = Crew(num_threads)
    try:
        pin(0)
        yield threads
    finally:
        threads.close()
        if before is not None:
            os.sched_setaffinity(0, before)


def share(count: int, thread: int, num_threads: int) -> tuple[int, int]:
    """Return the first and one past the last of `count` things that a thread takes."""
    return count * thread // num_threads, count * (thread + 1) // num_threads


def last_level_cache_bytes() -> int:
    """Return the size of the largest cache that CPU 0 sees, 32 MiB where the system hides it."""
    sizes = []
    for index in range(8):
        try:
            with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size") as file:
                sizes.append(int(file.read().strip().removesuffix("K")) << 10)
        except (OSError, ValueError):
            continue
    return max(sizes, default=32 << 20)


def memory_rate(num_threads: int, nbytes: int, seconds: float = SECONDS) -> float:
    """Return the bytes per second at which threads read a buffer, the best of several passes.

    Parameters
    ----------
    num_threads : int
        Each reads its own part, again and again.
    nbytes : int
        Size of the whole buffer, in huge pages where the system gives them.
    seconds : float
        Least time spent reading.
    """
    read = _loops()[0]
    strides = nbytes // STRIDE
    with Arena(strides * STRIDE) as arena, crew(num_threads) as threads:
        start = arena.alloc(strides * STRIDE, 64)
        arena.view(start, strides * STRIDE)[:] = 1  # pages of zeros may all be the same page

        def work(thread: int, repeats: int) -> None:
            first, last = share(strides, thread, num_threads)
            for _ in range(repeats):
                read(start + first * STRIDE, last - first)

        return strides * STRIDE / _best_seconds(threads, work, seconds)


def integer_peak(num_threads: int, seconds: float = SECONDS) -> float:
    """Return the operations per second of the vector dot product, the best of several passes."""
    return _peak(_loops()[1], num_threads, _chains() * OPS_PER_DOT, seconds)


def tile_peak(num_threads: int, seconds: float = SECONDS) -> float | None:
    """Return the operations per second of tile products; None where the road has no tiles."""
    if not has_tiles():
        return None
    return _peak(_loops()[2], num_threads, TILES * OPS_PER_TILE, seconds)


def has_tiles() -> bool:
    """Return whether kernels take the road amx."""
    return choose_road().name == "amx"


def _peak(loop: Any, num_threads: int, operations: int, seconds: float) -> float:
    rounds = 10_000
    with Arena(num_threads * _AREA) as arena, crew(num_threads) as threads:
        start = arena.alloc(num_threads * _AREA, 4096)
        arena.view(start, num_threads * _AREA)[:] = 3

        def work(thread: int, repeats: int) -> None:
            loop(start + _AREA * thread, rounds * repeats)

        best = _best_seconds(threads, work, seconds)
    return num_threads * rounds * operations / best


def disk_rate(path: str | os.PathLike[str]) -> DiskRate:
    """Return how fast a file is read past the page cache."""
    return read_rate(path)


def _best_seconds(threads: Crew, work: Callable[[int, int], None], seconds: float) -> float:
    """Return the least time of ``work(thread, 1)``, from passes of enough repetitions.

    The least, because a limit is what the machine can do undisturbed.
    """

    def timed(repeats: int) -> float:
        begin = time.perf_counter()
        threads(lambda thread: work(thread, repeats))
        return time.perf_counter() - begin

    timed(1)  # compiles, and touches the memory
    repeats = 1
    while timed(repeats) < PASS_SECONDS:
        repeats *= 2
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(repeats))
    return min(times) / repeats


def _chains() -> int:
    return CHAINS if choose_road().name in ("amx", "avx512") else CHAINS_SPLIT


@cache
def _loops() -> tuple[Any, Any, Any]:
    """Compile read(address, strides), multiply(address, rounds), tiles(address, rounds).

    They hold no GIL; without tiles the third is None.
    """
    road = choose_road()
    before = dict(os.environ)
    os.environ.update(road.environment())
    try:
        from numba import njit

        from bench import loops
        from fastllm.kernels.emit import kernel
        from fastllm.kernels.memory import I, N
    finally:  # whatever else this process imports is the engine's, which compiles nothing
        os.environ.clear()
        os.environ.update(before)

    def loop(generate: Any) -> Any:
        once: Any = kernel(N, I, I)(generate)

        # not `compiled`: that one decides when it is imported, and this is not a build process
        def run(address: int, count: int) -> None:
            once(address, count)

        return njit(nogil=True)(run)

    return (
        loop(loops.read(STRIDE)),
        loop(loops.multiply(_chains())),
        loop(loops.tiles(TILES)) if has_tiles() else None,
    )


def main() -> None:
    """Print the limits of this machine."""
    cache_bytes = last_level_cache_bytes()
    # of a buffer of twice the cache a third is still found there
    sizes = {
        "last-level cache": min(cache_bytes // 4, 32 << 20),
        "memory": min(8 * cache_bytes, 2 << 30),
    }
    for num_threads in (1, 2):
        for name, nbytes in sizes.items():
            rates = [memory_rate(num_threads, nbytes) for _ in range(3)]
            print(
                f"read, {num_threads} threads, {nbytes >> 20:5} MiB ({name}): "
                f"{statistics.median(rates) / 1e9:6.1f} GB/s"
            )
        peaks = [integer_peak(num_threads) for _ in range(3)]
        print(
            f"integer peak, {num_threads} threads, {choose_road().name}: "
            f"{statistics.median(peaks) / 1e9:.0f} Gop/s"
        )
        tiles = tile_peak(num_threads)
        if tiles is not None:
            print(f"tile peak, {num_threads} threads: {tiles / 1e9:.0f} Gop/s")
    if len(sys.argv) > 1:
        rate = disk_rate(sys.argv[1])
        how = "past" if rate.direct else "through"
        print(f"disk, {how} the page cache: {rate.bytes_per_s / 1e9:.2f} GB/s ({sys.argv[1]})")


if __name__ == "__main__":
    main()
