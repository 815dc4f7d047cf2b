"""What this machine can do at most, measured beside whatever is compared with it.

* `memory_rate`: bytes per second that threads read from a buffer, one XOR for every 64 bytes. A
  buffer as large as the weights of a model gives the limit of generation: a token reads them once.
* `integer_peak`: operations per second of the road's integer dot product with all operands in
  registers (avx512), or with one operand from the first-level cache (the other roads, where a
  product of registers would be moved out of the loop). An addition and a multiplication are two.
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

from fastllm.flash.arena import Arena
from fastllm.kernels.road import choose_road
from fastllm.machine.disks import DiskRate, read_rate

# Independent sums. avx512: latency 4-5 cycles on two units, rounded up. Elsewhere a sum takes two or four
# registers of sixteen and its addition one cycle.
CHAINS, CHAINS_SPLIT = 12, 3
OPS_PER_DOT = 2 * 64  # Emitter.dp: 16 lanes of 4 products
STRIDE = 512  # bytes read per round of the loop
SECONDS = 0.1  # of one measurement

Work = Callable[[int], object]


class Crew:
    """Threads that do their shares of a job together; thread 0 is the caller."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads)

    def __call__(self, work: Work) -> None:
        """Run ``work(thread)`` on every thread and wait for all."""
        others = [self._pool.submit(work, thread) for thread in range(1, self.num_threads)]
        work(0)
        for other in others:
            other.result()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


@contextmanager
def crew(num_threads: int) -> Iterator[Crew]:
    """Give a `Crew` for a while."""
    threads = Crew(num_threads)
    try:
        yield threads
    finally:
        threads.close()


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
    read, _ = _loops()
    strides = nbytes // STRIDE
    with Arena(strides * STRIDE) as arena, crew(num_threads) as threads:
        start = arena.alloc(strides * STRIDE, 64)
        arena.view(start, strides * STRIDE)[:] = 1  # pages of zeros may all be the same page

        def work(thread: int) -> None:
            first, last = share(strides, thread, num_threads)
            read(start + first * STRIDE, last - first)

        return strides * STRIDE / _best_seconds(threads, work, seconds)


def integer_peak(num_threads: int, seconds: float = SECONDS) -> float:
    """Return the operations per second of the integer dot product, the best of several passes."""
    _, multiply = _loops()
    rounds = 100_000
    with Arena(num_threads * 4096) as arena, crew(num_threads) as threads:
        start = arena.alloc(num_threads * 4096, 4096)
        arena.view(start, num_threads * 4096)[:] = 3

        def work(thread: int) -> None:
            multiply(start + 4096 * thread, rounds)

        best = _best_seconds(threads, work, seconds)
    return num_threads * rounds * _chains() * OPS_PER_DOT / best


def disk_rate(path: str | os.PathLike[str]) -> DiskRate:
    """Return how fast a file is read past the page cache."""
    return read_rate(path)


def _best_seconds(threads: Crew, work: Work, seconds: float) -> float:
    """Return the least time of one pass. A limit is what the machine can do undisturbed."""
    threads(work)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.perf_counter()
        threads(work)
        times.append(time.perf_counter() - begin)
    return min(times)


def _chains() -> int:
    return CHAINS if choose_road().name == "avx512" else CHAINS_SPLIT


@cache
def _loops() -> tuple[Any, Any]:
    """Compile (read(address, strides), multiply(address, rounds)); both without the GIL."""
    road = choose_road()
    if "numba" not in sys.modules:
        os.environ["NUMBA_CPU_NAME"] = road.cpu
        os.environ["NUMBA_CPU_FEATURES"] = road.features
    from fastllm.kernels.emit import Emitter, Value, kernel, v16i32
    from fastllm.kernels.jit import compiled

    def read(e: Emitter, start: Value, strides: Value) -> None:
        def stride(i: Value, sums: list[Value]) -> list[Value]:
            at = e.add(start, e.mul(i, STRIDE))
            for piece in range(STRIDE // 64):
                value = e.ordered_load(at, v16i32, 64 * piece, 64)
                chain = piece % len(sums)
                sums[chain] = e.b.xor(sums[chain], value)
            return sums

        sums = e.loop(strides, [e.splat(0, v16i32)] * 4, stride)
        total = sums[0]
        for other in sums[1:]:
            total = e.b.xor(total, other)
        e.store(total, start, 0, 64)  # or nothing would have to be read

    chains = _chains()

    def multiply(e: Emitter, place: Value, rounds: Value) -> None:
        in_registers = road.name == "avx512"
        u = e.load(place, v16i32, 0, 64)
        s = e.load(place, v16i32, 64, 64)

        def step(_i: Value, sums: list[Value]) -> list[Value]:
            return [
                e.dp(total, u if in_registers else e.ordered_load(place, v16i32, 128, 64), s)
                for total in sums
            ]

        # chains start from different values, or LLVM would merge them
        start = [e.splat(chain, v16i32) for chain in range(chains)]
        for chain, total in enumerate(e.loop(rounds, start, step)):
            e.store(total, place, 1024 + 64 * chain, 64)

    read_once, multiply_once = kernel(road, 2, read), kernel(road, 2, multiply)

    @compiled
    def read_loop(start: int, strides: int) -> None:
        read_once(start, strides)

    @compiled
    def multiply_loop(place: int, rounds: int) -> None:
        multiply_once(place, rounds)

    return read_loop, multiply_loop


def main() -> None:
    """Print the limits of this machine."""
    cache_bytes = last_level_cache_bytes()
    sizes = {"last-level cache": min(cache_bytes // 4, 32 << 20), "memory": 2 * cache_bytes}
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
    if len(sys.argv) > 1:
        rate = disk_rate(sys.argv[1])
        how = "past" if rate.direct else "through"
        print(f"disk, {how} the page cache: {rate.bytes_per_s / 1e9:.2f} GB/s ({sys.argv[1]})")


if __name__ == "__main__":
    main()
