"""Which road the kernels take on this CPU: amx, avx512, avx2 or generic.

A road is a fixed LLVM target, not "the host": its objects, and so its bits, are the same on every
CPU that can run it, and one cache entry (or one file in a wheel) serves them all.
``FASTLLM_ROAD=name`` is a demand: an unknown road, or one that this CPU cannot run, is an error.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import lru_cache

from fastllm.environment import switch
from fastllm.errors import KernelError
from fastllm.machine.features import cpu_info

# The road of a build process (``kernels.target``); FASTLLM_ROAD is the user's demand.
BUILD_ROAD = "FASTLLM_BUILD_ROAD"


@dataclass(frozen=True)
class Road:
    """One instruction-set target.

    Attributes
    ----------
    name : str
        "amx", "avx512", "avx2" or "generic".
    cpu, features : str
        LLVM's CPU name and feature string that the objects are compiled for.
    needs : frozenset of str
        LLVM feature names that the CPU must have.
    largest_tile : int
        Most tokens that a matrix kernel takes at once (``kernels.tiles``), a power of two.
        Registers decide; 16 is what a tile register of AMX holds.
    """

    name: str
    cpu: str
    features: str
    needs: frozenset[str]
    largest_tile: int

    def environment(self) -> dict[str, str]:
        """Variables of a process that compiles for this road, set before it imports anything."""
        return {
            BUILD_ROAD: self.name,
            "NUMBA_CPU_NAME": self.cpu,
            "NUMBA_CPU_FEATURES": self.features,
            "NUMBA_DISABLE_JIT": "0",
        }


_X86 = platform.machine().lower() in ("x86_64", "amd64")
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512vnni"}

ROADS: tuple[Road, ...]
if _X86:
    ROADS = (
        Road(
            "amx",
            "x86-64-v4",
            "+avx512vnni,+amx-tile,+amx-int8",
            _AVX512 | {"amx-tile", "amx-int8"},
            16,
        ),
        Road("avx512", "x86-64-v4", "+avx512vnni", _AVX512, 8),
        Road("avx2", "x86-64-v3", "", _AVX2, 4),
        Road("generic", "x86-64", "", frozenset(), 2),
    )
else:
    ROADS = (Road("generic", "generic", "", frozenset(), 4),)


def host_features() -> frozenset[str]:
    """LLVM's names of the features that this process may use on the CPU it runs on.

    Of those that a road needs, where Linux tells them: importing llvmlite to ask takes 50 ms and
    45 MB.
    """
    told = cpu_info().features if _X86 else frozenset()
    features = {_llvm_name(flag) for flag in told}
    if not told:
        import llvmlite.binding as llvm

        features = {name for name, on in llvm.get_host_cpu_features().items() if on}
    if "amx-tile" in features and not _tiles_allowed():
        features -= {"amx-tile", "amx-int8"}
    return frozenset(features)


def _llvm_name(flag: str) -> str:
    """Return LLVM's name of a flag of /proc/cpuinfo: "avx512vnni" of "avx512_vnni"."""
    return flag.replace("avx512_", "avx512").replace("amx_", "amx-")


@lru_cache(maxsize=1)
def _tiles_allowed() -> bool:
    """Ask Linux for the 8 KiB of tile state; it is granted per process, for all threads."""
    if sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.syscall(arch_prctl, request_permission, tile_data) == 0)
    except (OSError, AttributeError):
        return False


def road_named(name: str) -> Road:
    """Return the road called `name`; KernelError if there is none."""
    for road in ROADS:
        if road.name == name:
            return road
    known = ", ".join(road.name for road in ROADS)
    raise KernelError(f"FASTLLM_ROAD={name!r}: no such road here; choose one of {known}")


def choose_road() -> Road:
    """Return the best road this CPU can run, or the one that FASTLLM_ROAD demands."""
    have = host_features()
    demanded = os.environ.get("FASTLLM_ROAD")
    if demanded:
        road = road_named(demanded)
        missing = sorted(road.needs - have)
        if missing:
            raise KernelError(
                f"FASTLLM_ROAD={demanded}: this CPU lacks {', '.join(missing)}; unset it"
            )
        return road
    return next(road for road in ROADS if road.needs <= have)


def wants_prefetch() -> bool:
    """Whether one-token matrix products should prefetch in software on this CPU.

    By maker, as measured (see ``kernels.matmul.AHEAD``); ``FASTLLM_PREFETCH=0`` or ``1`` overrides.
    """
    demanded = switch("FASTLLM_PREFETCH")
    return cpu_info().vendor == "GenuineIntel" if demanded is None else demanded


def describe() -> dict[str, object]:
    """What `fastllm doctor` shows: the road taken, the roads possible, the CPU as LLVM names it."""
    import llvmlite.binding as llvm

    have = host_features()
    return {
        "road": choose_road().name,
        "possible": [road.name for road in ROADS if road.needs <= have],
        "prefetch": wants_prefetch(),
        "llvm_cpu": llvm.get_host_cpu_name(),
        "llvm_version": ".".join(str(part) for part in llvm.llvm_version_info),
    }
