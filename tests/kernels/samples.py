"""Memory for the kernels, and rows of every weight format, drawn from a generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastllm.kernels.interpreter_codes import PACK_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.moves import move_table
from fastllm.kernels.objects import addresses, callable_at
from fastllm.kernels.road import ROADS, Road, host_features
from fastllm.quants import BLOCKS, dequantize, quantize

FLOATS = ("f32", "f16", "bf16")
#: Roads that this CPU can run, best first.
POSSIBLE_ROADS = tuple(road for road in ROADS if road.needs <= host_features())


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = 64) -> NDArray:
    """Return zeros that begin at a multiple of `align` bytes."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(nbytes + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def aligned_copy(values: NDArray, extra_bytes: int = 0) -> NDArray:
    """Return a copy at a multiple of 64 bytes, zeros behind it."""
    memory = aligned(values.nbytes + extra_bytes)
    memory[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return memory[: values.nbytes].view(values.dtype).reshape(values.shape)


def random_rows(
    name: str, rows: int, columns: int, rng: np.random.Generator, deviation: float = 1.0
) -> NDArray[np.uint8]:
    """Return native rows: random codes, scales such that values have about this deviation."""
    if name in FLOATS:
        values = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(deviation)
        return quantize(name, values)
    block = BLOCKS[name]
    raw = rng.integers(0, 256, (rows, columns // block.elements, block.bytes), np.uint8)
    fields = raw.view(block.record)[..., 0]
    scales = [field for field in block.record.names if block.record[field] == np.dtype("<f2")]
    drawn = {field: rng.standard_normal(fields.shape) for field in scales}
    for field in scales:
        fields[field] = drawn[field]
    unit = dequantize(name, raw.reshape(rows, -1)).std()
    for field in scales:
        fields[field] = drawn[field] * deviation / unit
    return raw.reshape(rows, -1)


def pack_rows(name: str, rows: NDArray[np.uint8], columns: int, road: Road) -> NDArray[np.uint8]:
    """Return the panels of native rows, packed by the kernel: uint8[num_panels, panel_bytes]."""
    layout = LAYOUTS[name]
    panels = -(-len(rows) // 16)
    out = aligned((panels, layout.panel_bytes(columns)))
    moves = move_table(name)
    pack = callable_at(addresses(["pack"], road)["pack"], PACK_ARGS)
    job = np.array(
        [
            moves.ctypes.data, rows.shape[1], len(rows), layout.block_bytes, layout.units(columns),
            out.ctypes.data, 0, panels,
        ]
    )  # fmt: skip
    pack(job.ctypes.data, rows.ctypes.data)
    return out
