"""``fastllm doctor``: what this machine can do, and what fastllm makes of it."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np

from fastllm import __version__
from fastllm.cli import options
from fastllm.cli.units import size
from fastllm.errors import FastLLMError
from fastllm.hub.store import Store, home
from fastllm.machine import cpus, disks, features, memory

# Of a CPU's hundred flags those that decide how a kernel is written.
_TELLING = (
    *("sse4_1", "f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2", "bf16"),
)
_BUFFER_BYTES = 64 << 20  # well beyond a core's share of any last-level cache
_READ_S = 0.3

Fact = tuple[str, str]


@click.command("doctor")
@options.as_json
@options.verbose
def command(as_json: bool) -> None:
    """Show cores, instruction sets, memory and disk rates, and the state of the caches."""
    facts: dict[str, str] = {}
    for name, value in _facts():
        facts[name] = value
        if not as_json:
            print(f"{name:<15} {value}", flush=True)
    if as_json:
        print(json.dumps(facts))


def _facts() -> Iterator[Fact]:
    yield "fastllm", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    libraries = ("numpy", "llvmlite", "numba", "tokenizers")
    yield "libraries", ", ".join(f"{name} {_version(name)}" for name in libraries)
    yield from _cpu()
    yield "kernels", _guarded(_road)
    yield "kernel cache", _guarded(_kernel_cache)
    limit, source = memory.limit_bytes()
    yield "memory limit", f"{size(limit)} ({source}), {size(memory.available_bytes())} free now"
    num_threads = cpus.default_threads()
    rate = read_bandwidth(num_threads)
    yield "memory reads", f"about {rate / 1e9:.1f} GB/s with {num_threads} threads (NumPy sum)"
    yield "disk reads", _disk()
    yield "models", _models()


def _cpu() -> Iterator[Fact]:
    info = features.cpu_info()
    usable = cpus.usable_cpus()
    cores = cpus.physical_cores(usable)
    quota = cpus.cgroup_quota()
    yield "processor", f"{info.name} ({info.architecture})"
    found = [name for name in _TELLING if name in info.features]
    yield "instructions", " ".join(found) or "the system does not tell"
    limited = "no quota" if quota is None else f"a quota of {quota:g} CPUs"
    yield "cores", f"{len(cores)} cores, {len(usable)} CPUs usable, {limited}"
    yield "threads", f"{cpus.default_threads()} by default (-t)"


def _road() -> str:
    from fastllm.kernels.road import describe

    return ", ".join(f"{key} {_plain(value)}" for key, value in describe().items())


def _kernel_cache() -> str:
    from fastllm.kernels.objects import cache_root, source_key

    objects = list((cache_root() / source_key()).glob("*.o"))
    if not objects:
        return f"empty ({cache_root()}); `fastllm warmup` builds it, or the first load does"
    nbytes = sum(path.stat().st_size for path in objects)
    return f"{len(objects)} objects, {size(nbytes)} in {cache_root()}"


def _disk() -> str:
    largest = max(Store(), key=lambda stored: stored.nbytes, default=None)
    if largest is None:
        return "no pulled model to read (`fastllm pull smollm2`)"
    path = largest.path
    if path.is_dir():
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    rate = disks.read_rate(path)
    how = "past the page cache" if rate.direct else "through the page cache"
    return f"{rate.bytes_per_s / 1e9:.2f} GB/s, {how} ({Path(path).name})"


def _models() -> str:
    found = list(Store())
    return f"{len(found)} of {size(sum(s.nbytes for s in found))} in {home()}"


def read_bandwidth(num_threads: int, seconds: float = _READ_S) -> float:
    """Return the bytes per second that threads read from memory, each from a buffer of its own.

    NumPy's integer sum runs without the GIL and close to the rate of memory; kernels that
    prefetch can be somewhat faster.
    """
    buffers = [np.ones(_BUFFER_BYTES // 8, np.int64) for _ in range(num_threads)]
    totals = [0] * num_threads
    start = time.perf_counter()

    def read(index: int) -> None:
        while time.perf_counter() < start + seconds:
            buffers[index].sum()
            totals[index] += _BUFFER_BYTES

    threads = [threading.Thread(target=read, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - start)


def _guarded(ask: Callable[[], str]) -> str:
    """Doctor is for machines where something is wrong: an error is an answer too."""
    try:
        return ask()
    except (FastLLMError, ImportError, OSError) as error:
        return f"not usable: {error}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _plain(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
