"""The page of the KV cache: where the key and the value of a position lie in it, and nothing else.

A page holds 64 positions of one kv head. A block of a layer is the pages of its kv heads, one after
the other. Of what type its values are is a word of the ops that write and read it (`KV_TYPES`)::

    f16 f32    K [4][D][16]        position = lane, so scores need no sum across lanes
               V [64][D]
    i16        K [4][D / 2][16][2] codes, two dimensions side by side; then float32[64] units
               V [32][D][2]        codes, two positions side by side; then float32[64] units

with D = head_dim padded to 16.

i16 is 16-bit codes with a unit (what one step is worth) for each key and value. A vector's codes
are scaled by its length, to 46,000: then no product of two vectors overflows 32 bits, whatever
their dimension, so scores are exact integers, at twice the rate of float32. That is about 15 bits
of the largest component where f16 has 11 of each, and no number is out of range (a vector below
2**-100 is zero). Queries are codes then, too, in the first half of their place.

The writer of the table and the cache ask here, too, so numba is imported by a build process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastllm.kernels.jit import COMPILING, compiled

PAGE = 64  # positions
LANES = 16  # positions of a vector of keys
KV_TYPES = {"f16": 0, "f32": 1, "i16": 2}
F16, F32, I16 = KV_TYPES["f16"], KV_TYPES["f32"], KV_TYPES["i16"]

if COMPILING:
    from llvmlite import ir

    from fastllm.kernels.emit import f32, i32, kernel, v16f32, v16i16, v16i32, vec
    from fastllm.kernels.memory import (
        F,
        I,
        N,
        V,
        beyond_half,
        load16,
        load16_half,
        store16,
        store16_half,
        store16_half_strided,
        store16_strided,
        store_f32,
    )
    from fastllm.kernels.quantize import ROUND, TINY, larger, magnitude
if TYPE_CHECKING:
    from fastllm.kernels.emit import Emitter, Value


@compiled
def padded_head_dim(head_dim: int) -> int:
    """Dimensions stored for a head: the next multiple of 16."""
    return (head_dim + 15) // 16 * 16


@compiled
def _value_bytes(kv_type: int) -> int:
    return 4 if kv_type == F32 else 2


@compiled
def _half_bytes(dim: int, kv_type: int) -> int:
    """Bytes of the keys of a page, and of its values."""
    return PAGE * (dim * _value_bytes(kv_type) + (4 if kv_type == I16 else 0))


@compiled
def page_bytes(dim: int, kv_type: int) -> int:
    """Bytes of keys and values of a page; `dim` is padded."""
    return 2 * _half_bytes(dim, kv_type)


# --------------------------------------------------------------------------- codes
LARGEST = 32767.0  # code
# Length of a vector's codes: (46000 + what rounding adds, 0.5 sqrt(D))**2 < 2**31 up to D = 65536.
LENGTH = 46000.0

if COMPILING:

    @kernel(F, I, I)
    def _unit(e: Emitter, x: Value, dim: Value) -> Value:
        """What one step of the codes of float32[dim] is worth; NaN if it has one or an infinity."""
        b = e.b
        count = b.lshr(dim, e.c(4))

        def vector(i: Value) -> Value:
            return e.load(e.add(x, e.mul(i, 64)), v16f32)

        (most,) = e.loop(
            count, [e.splat(0, v16i32)], lambda i, s: [larger(e, magnitude(e, vector(i)), s[0])]
        )
        amax = b.bitcast(e.tree(most, lambda a, c: larger(e, a, c)), f32)
        # squares of x / amax cannot overflow
        usable = b.fcmp_ordered(">", amax, ir.Constant(f32, TINY))
        inverse = b.select(usable, b.fdiv(ir.Constant(f32, 1.0), amax), ir.Constant(f32, 0.0))
        wide = e.splat(inverse, v16f32)

        def square(i: Value, s: list[Value]) -> list[Value]:
            y = b.fmul(vector(i), wide)
            return [e.fma(y, y, s[0])]

        (squares,) = e.loop(count, [e.splat(0.0, v16f32)], square)
        length = e.call("llvm.sqrt.f32", f32, e.hsum(squares))
        step = e.fmax(b.fmul(length, ir.Constant(f32, 1 / LENGTH)), ir.Constant(f32, 1 / LARGEST))
        # An infinite component has no code, and what it became must show: inf - inf is NaN.
        return b.fadd(b.fmul(amax, step), b.fsub(amax, amax))

    def rounded(e: Emitter, v: Value, factor: Value) -> Value:
        """int16[16] of v * factor."""
        shifted = e.fma(v, factor, e.splat(ROUND, v16f32))
        return e.b.trunc(e.b.bitcast(shifted, v16i32), v16i16)  # the low 16 bits of ROUND are 0

    def _codes(e: Emitter, v: Value, unit: Value) -> Value:
        """int16[16] of 16 floats."""
        b = e.b
        usable = b.fcmp_ordered(">", unit, ir.Constant(f32, TINY / LARGEST))
        inverse = b.select(usable, b.fdiv(ir.Constant(f32, 1.0), unit), ir.Constant(f32, 0.0))
        return rounded(e, v, e.splat(inverse, v16f32))

    @kernel(N, I, V, F)
    def _store_codes(e: Emitter, a: Value, v: Value, unit: Value) -> None:
        e.store(_codes(e, v, unit), a, 0, 2)

    @kernel(N, I, V, F)
    def _store_key_codes(e: Emitter, a: Value, v: Value, unit: Value) -> None:
        """Pairs of dimensions, a vector of positions apart."""
        pairs = e.b.bitcast(_codes(e, v, unit), vec(i32, 8))
        for i in range(8):
            e.store(e.b.extract_element(pairs, ir.Constant(i32, i)), a, 4 * LANES * i)

    @kernel(N, I, V, F)
    def _store_value_codes(e: Emitter, a: Value, v: Value, unit: Value) -> None:
        """Dimensions with those of the neighbouring position between them."""
        codes = _codes(e, v, unit)
        for i in range(16):
            e.store(e.b.extract_element(codes, ir.Constant(i32, i)), a, 4 * i, 2)


# --------------------------------------------------------------------------- writing
@compiled
def store_query(x: int, dim: int, kv_type: int) -> None:
    """Make what scores with pages of a type read of the float32[dim] at x, in its place."""
    if kv_type == I16:
        unit = _unit(x, dim)
        for i in range(dim // 16):
            _store_codes(x + 32 * i, load16(x + 64 * i), unit)
        store_f32(x + 2 * dim, unit)


@compiled
def store_key(page: int, slot: int, dim: int, kv_type: int, x: int) -> int:
    """Write float32[dim] at x as the key of position `slot`; not 0 if its type cannot hold it."""
    size, over = _value_bytes(kv_type), 0
    group, inside = slot // LANES, slot % LANES
    if kv_type == I16:
        unit = _unit(x, dim)
        lane = page + (group * dim // 2 * LANES + inside) * 4
        for i in range(dim // 16):
            _store_key_codes(lane + 512 * i, load16(x + 64 * i), unit)
        store_f32(page + PAGE * dim * 2 + 4 * slot, unit)
        return over
    lane = page + (group * dim * LANES + inside) * size
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
    over, first = 0, page + _half_bytes(dim, kv_type)
    if kv_type == I16:
        unit = _unit(x, dim)
        at = first + (slot // 2 * dim * 2 + slot % 2) * 2
        for i in range(dim // 16):
            _store_value_codes(at + 64 * i, load16(x + 64 * i), unit)
        store_f32(first + PAGE * dim * 2 + 4 * slot, unit)
        return over
    at = first + slot * dim * _value_bytes(kv_type)
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
    """Return the reader of (lane group, d): dimension d of the 16 positions of a group.

    Of codes: dimensions 2 d and 2 d + 1, as pairs of int16 in int32.
    """
    if kv_type == I16:
        vector, group = 64, e.mul(dim, 32)
    else:
        vector = LANES * (4 if kv_type == F32 else 2)
        group = e.mul(dim, vector)
    groups = [e.add(page, e.mul(group, j)) for j in range(PAGE // LANES)]

    def key(j: int, d: Value) -> Value:
        at = e.add(groups[j], e.mul(d, vector))
        return e.load(at, v16i32, 0, 64) if kv_type == I16 else _floats(e, kv_type, at)

    return key


def values(
    e: Emitter, kv_type: int, page: Value, dim: Value, column: Value
) -> Callable[[Value, int], Value]:
    """Return the reader of (slot, i): dimensions of a position, 16 of them from column + 16 i.

    Of codes: positions 2 slot and 2 slot + 1, as pairs of int16 in int32.
    """
    size = 2 if kv_type == F16 else 4  # of a value, or of a pair of codes
    row = e.mul(dim, size)
    skip = e.add(e.mul(dim, 128), 256) if kv_type == I16 else e.mul(row, PAGE)
    first = e.add(e.add(page, skip), e.mul(column, size))

    def value(slot: Value, i: int) -> Value:
        at = e.add(e.add(first, e.mul(slot, row)), 16 * size * i)
        return e.load(at, v16i32, 0, 64) if kv_type == I16 else _floats(e, kv_type, at)

    return value


def key_units(e: Emitter, page: Value, dim: Value, j: int) -> Value:
    """Units of the keys of lane group j of a page of codes."""
    return e.load(e.add(page, e.mul(dim, 2 * PAGE)), v16f32, 64 * j, 64)


def value_units(e: Emitter, page: Value, dim: Value, j: int) -> Value:
    """Units of the values of positions 16 j to 16 j + 15 of a page of codes."""
    return e.load(e.add(page, e.mul(dim, 4 * PAGE)), v16f32, 256 + 64 * j, 64)
