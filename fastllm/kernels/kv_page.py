"""The page of the KV cache: where the key and the value of a position lie in it, and nothing else.

A page holds 64 positions of one kv head. A block of a layer is the pages of its kv heads, one after
the other. Of what type its values are is a word of the ops that write and read it (`KV_TYPES`)::

    f16 f32    K [4][D][16]   position = lane, so scores need no sum across lanes
               V [64][D]

with D = head_dim padded to 16. The writer of the table and the cache ask here, too, so numba is
imported by a build process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastllm.kernels.jit import COMPILING, compiled

if COMPILING:
    from fastllm.kernels.emit import v16f32, v16i16
    from fastllm.kernels.memory import (
        beyond_half,
        load16,
        load16_half,
        store16,
        store16_half,
        store16_half_strided,
        store16_strided,
    )
if TYPE_CHECKING:
    from fastllm.kernels.emit import Emitter, Value

PAGE = 64  # positions
LANES = 16  # positions of a vector of keys
KV_TYPES = {"f16": 0, "f32": 1}
F16, F32 = KV_TYPES["f16"], KV_TYPES["f32"]


@compiled
def padded_head_dim(head_dim: int) -> int:
    """Dimensions stored for a head: the next multiple of 16."""
    return (head_dim + 15) // 16 * 16


@compiled
def _value_bytes(kv_type: int) -> int:
    return 4 if kv_type == F32 else 2


@compiled
def page_bytes(dim: int, kv_type: int) -> int:
    """Bytes of keys and values of a page; `dim` is padded."""
    return 2 * PAGE * dim * _value_bytes(kv_type)


# --------------------------------------------------------------------------- writing
@compiled
def store_key(page: int, slot: int, dim: int, kv_type: int, x: int) -> int:
    """Write float32[dim] at x as the key of position `slot`; not 0 if its type cannot hold it."""
    size, over = _value_bytes(kv_type), 0
    lane = page + (slot // LANES * dim * LANES + slot % LANES) * size
    for i in range(dim // 16):
        key = load16(x + 64 * i)
        if kv_type == F32:
            store16_strided(lane + 1024 * i, 64, key)
        else:
            over |= beyond_half(key)
            store16_half_strided(lane + 512 * i, 32, key)
    return over


@compiled
def store_value(page: int, slot: int, dim: int, kv_type: int, x: int) -> int:
    """Write float32[dim] at x as the value of position `slot`; not 0 if it cannot be held."""
    over = 0
    at = page + (PAGE + slot) * dim * _value_bytes(kv_type)
    for i in range(dim // 16):
        value = load16(x + 64 * i)
        if kv_type == F32:
            store16(at + 64 * i, value)
        else:
            over |= beyond_half(value)
            store16_half(at + 32 * i, value)
    return over


@compiled
def widen(page: int, dim: int, out: int) -> None:
    """A page of f16 to one of f32: exact, paid once for many query rows."""
    for i in range(2 * PAGE * dim // 16):
        store16(out + 64 * i, load16_half(page + 32 * i))


# --------------------------------------------------------------------------- reading
def _floats(e: Emitter, kv_type: int, address: Value) -> Value:
    """16 stored values as floats."""
    if kv_type == F32:
        return e.load(address, v16f32, 0, 64)
    return e.half_to_float(e.load(address, v16i16, 0, 32))


def keys(e: Emitter, kv_type: int, page: Value, dim: Value) -> Callable[[int, Value], Value]:
    """Return the reader of (lane group, d): dimension d of the 16 positions of a group."""
    vector = LANES * (4 if kv_type == F32 else 2)
    group = e.mul(dim, vector)
    groups = [e.add(page, e.mul(group, j)) for j in range(PAGE // LANES)]
    return lambda j, d: _floats(e, kv_type, e.add(groups[j], e.mul(d, vector)))


def values(
    e: Emitter, kv_type: int, page: Value, dim: Value, column: Value
) -> Callable[[Value, int], Value]:
    """Return the reader of (slot, i): dimensions of a position, 16 of them from column + 16 i."""
    size = 4 if kv_type == F32 else 2
    row = e.mul(dim, size)
    first = e.add(e.add(page, e.mul(row, PAGE)), e.mul(column, size))
    return lambda slot, i: _floats(e, kv_type, e.add(e.add(first, e.mul(slot, row)), 16 * size * i))
