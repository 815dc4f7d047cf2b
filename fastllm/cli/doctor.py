"""``fastllm doctor``: what this machine can do, and what fastllm makes of it."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastllm import __version__
from fastllm.cli import options
from fastllm.cli.json_output import print_json
from fastllm.cli.units import size
from fastllm.environment import home
from fastllm.errors import FastLLMError
from fastllm.hub.store import Store
from fastllm.machine import cpus, disks, features, memory

# Of a CPU's hundred flags those that decide how a kernel is written.
_TELLING = (
    *("sse4_1", "f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2", "bf16"),
)
_BUFFER_BYTES = 64 << 20  # well beyond a core's share of any last-level cache
_READ_S = 0.3


@dataclass(frozen=True)
class Fact:
    """A line for a person, and what it says as values for JSON."""

    name: str
    text: str
    values: dict[str, Any]


@click.command("doctor")
@options.as_json
@options.verbose
def command(as_json: bool) -> None:
    """Show cores, instruction sets, memory and disk rates, and the state of the caches.

    With --json the same as numbers: bytes, bytes a second, counts.
    """
    found: dict[str, Any] = {}
    for fact in _facts():
        found.update(fact.values)
        if not as_json:
            print(f"{fact.name:<15} {fact.text}", flush=True)
    if as_json:
        print_json(found)


def _facts() -> Iterator[Fact]:
    python, system = platform.python_version(), platform.platform()
    yield Fact(
        "fastllm",
        f"{__version__}, Python {python}, {system}",
        {"version": __version__, "python": python, "platform": system},
    )
    libraries = {name: _version(name) for name in ("numpy", "llvmlite", "numba", "tokenizers")}
    text = ", ".join(f"{name} {number or 'missing'}" for name, number in libraries.items())
    yield Fact("libraries", text, {"libraries": libraries})
    yield from _cpu()
    yield _guarded("kernels", _road)
    yield _guarded("kernel cache", _kernel_cache)
    limit, source = memory.limit_bytes()
    free = memory.available_bytes()
    yield Fact(
        "memory limit",
        f"{size(limit)} ({source}), {size(free)} free now",
        {
            "memory_limit_bytes": limit,
            "memory_limit_source": source,
            "memory_available_bytes": free,
        },
    )
    num_threads = cpus.default_threads()
    rate = read_bandwidth(num_threads)
    yield Fact(
        "memory reads",
        f"about {rate / 1e9:.1f} GB/s with {num_threads} threads (NumPy sum)",
        {"memory_read_bytes_per_s": rate},
    )
    yield _guarded("disk reads", _disk)
    yield _guarded("models", _models)


def _cpu() -> Iterator[Fact]:
    info = features.cpu_info()
    usable = cpus.usable_cpus()
    cores = cpus.physical_cores(usable)
    quota = cpus.cgroup_quota()
    yield Fact(
        "processor",
        f"{info.name} ({info.architecture})",
        {"processor": info.name, "architecture": info.architecture},
    )
    found = [name for name in _TELLING if name in info.features]
    text = " ".join(found) or "the system does not tell"
    yield Fact("instructions", text, {"instructions": found})
    limited = "no quota" if quota is None else f"a quota of {quota:g} CPUs"
    yield Fact(
        "cores",
        f"{len(cores)} cores, {len(usable)} CPUs usable, {limited}",
        {"cores": len(cores), "cpus": len(usable), "cpu_quota": quota},
    )
    threads = cpus.default_threads()
    yield Fact("threads", f"{threads} by default (-t)", {"threads": threads})


def _road() -> Fact:
    from fastllm.kernels.road import describe

    found = describe()
    text = ", ".join(f"{key} {_plain(value)}" for key, value in found.items())
    return Fact("kernels", text, {"kernels": found})


def _kernel_cache() -> Fact:
    from fastllm.kernels.objects import cache_root, source_key

    folder = cache_root()
    objects = list((folder / source_key()).glob("*.o"))
    nbytes = sum(path.stat().st_size for path in objects)
    text = f"{len(objects)} objects, {size(nbytes)} in {folder}"
    if not objects:
        text = f"empty ({folder}); `fastllm warmup` builds it, or the first load does"
    values = {
        "kernel_cache": str(folder),
        "kernel_cache_objects": len(objects),
        "kernel_cache_bytes": nbytes,
    }
    return Fact("kernel cache", text, values)


def _disk() -> Fact:
    name = "disk reads"
    largest = max(Store(), key=lambda stored: stored.nbytes, default=None)
    if largest is None:
        text = "no pulled model to read (`fastllm pull smollm2`)"
        return Fact(name, text, {"disk_read_bytes_per_s": None})
    path = largest.path
    if path.is_dir():
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    rate = disks.read_rate(path)
    how = "past the page cache" if rate.direct else "through the page cache"
    return Fact(
        name,
        f"{rate.bytes_per_s / 1e9:.2f} GB/s, {how} ({Path(path).name})",
        {"disk_read_bytes_per_s": rate.bytes_per_s, "disk_read_direct": rate.direct},
    )


def _models() -> Fact:
    found = list(Store())
    nbytes = sum(s.nbytes for s in found)
    return Fact(
        "models",
        f"{len(found)} of {size(nbytes)} in {home()}",
        {"models": len(found), "models_bytes": nbytes, "home": str(home())},
    )


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


def _guarded(name: str, ask: Callable[[], Fact]) -> Fact:
    """Doctor is for machines where something is wrong: an error is an answer too."""
    try:
        return ask()
    except (FastLLMError, ImportError, OSError) as error:
        return Fact(name, f"not usable: {error}", {f"{name.replace(' ', '_')}_error": str(error)})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
