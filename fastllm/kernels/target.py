"""The road that this process compiles for: one build process, one road, known while importing.

Only what is compiled imports this; the engine itself may load objects of several roads and asks
``kernels.road``.
"""

from __future__ import annotations

import os

from fastllm.errors import KernelError
from fastllm.kernels.road import BUILD_ROAD, Road, road_named


def _road() -> Road:
    name = os.environ.get(BUILD_ROAD)
    if name is None:
        raise KernelError(f"kernels are compiled with {BUILD_ROAD} set; see `Road.environment`")
    return road_named(name)


ROAD = _road()
# Instructions of the vector code. amx is avx512 and tile registers besides: one code for all else.
VECTORS = "avx512" if ROAD.name == "amx" else ROAD.name
HAS_TILE_REGISTERS = ROAD.name == "amx"
HAS_FMA = bool(ROAD.needs) or ROAD.cpu == "generic"
LARGEST_TILE = ROAD.largest_tile
