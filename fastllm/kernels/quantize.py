"""float32 rows to the activations that the matrix kernels read (``kernels.activations``).

A row is quantized by itself, group by group, so the result does not depend on the tile it is put
in. A NaN or infinity in a group makes the group's scale NaN or infinite, so that it is seen in the
logits instead of being rounded away: |x| is compared as an integer, in which NaN is the largest.
"""

from __future__ import annotations

from functools import partial, reduce

from llvmlite import ir

from fastllm.kernels.emit import (
    Emitter,
    Value,
    f32,
    i8,
    i16,
    i32,
    kernel,
    v16f32,
    v16i32,
    vec,
)
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import I, N, load_f32, store_f32
from fastllm.kernels.target import LARGEST_TILE
from fastllm.kernels.tiles import tile_size

# Adding 1.5 * 2**23 leaves the rounded integer (to nearest, ties to even) in the low mantissa bits:
# works for |x| < 2**22 on every CPU, without SSE4.1's rounding instruction or a libm call.
ROUND = 12582912.0
ROUND_BITS = 0x4B400000
# Below this a group counts as zero: 127 / amax would overflow.
TINY = 2.0**-100


def _round(e: Emitter, x: Value) -> Value:
    shifted = e.b.fadd(x, e.splat(ROUND, v16f32))
    return e.b.sub(e.b.bitcast(shifted, v16i32), e.splat(ROUND_BITS, v16i32))


def magnitude(e: Emitter, v: Value) -> Value:
    """Bits of |v|, in which NaN is the largest."""
    return e.b.and_(e.b.bitcast(v, v16i32), e.splat(0x7FFFFFFF, v16i32))


def larger(e: Emitter, a: Value, b: Value) -> Value:
    """Maximum of integers."""
    return e.b.select(e.b.icmp_signed(">", a, b), a, b)


def _scales(e: Emitter, vectors: list[Value]) -> tuple[Value, Value]:
    """(dx, 1 / dx) of a group, scalars."""
    b = e.b
    most = reduce(partial(larger, e), [magnitude(e, v) for v in vectors])
    amax = b.bitcast(e.tree(most, partial(larger, e)), f32)
    dx = b.fmul(amax, ir.Constant(f32, 1 / 127))
    usable = b.fcmp_ordered(">", amax, ir.Constant(f32, TINY))
    inverse = b.fdiv(ir.Constant(f32, 127.0), amax)
    return dx, b.select(usable, inverse, ir.Constant(f32, 0.0))


@kernel(N, I, I, I, I)
def _quantize32(e: Emitter, x: Value, out: Value, size: Value, token: Value) -> None:
    """One group of 32: x float32[32] -> place of `token` in the group of a tile at `out`."""
    b = e.b
    vectors = [e.load(x, v16f32, 64 * i) for i in (0, 1)]
    dx, inverse = _scales(e, vectors)
    factor = e.splat(inverse, v16f32)
    codes = [_round(e, b.fmul(v, factor)) for v in vectors]
    total = e.hsum(b.add(codes[0], codes[1]))
    at = e.add(out, e.mul(token, 4))
    e.store(dx, at)
    row = e.mul(size, 4)
    e.store(b.fmul(dx, b.sitofp(total, f32)), b.add(at, row))
    e.store(b.mul(total, ir.Constant(i32, -128)), b.add(at, e.mul(size, 8)))
    place = b.add(b.add(out, e.mul(size, 12)), e.mul(token, 32))
    for i in (0, 1):
        e.store(b.trunc(codes[i], vec(i8, 16)), place, 16 * i)


@kernel(N, I, I, I, I)
def _quantize256(e: Emitter, x: Value, out: Value, size: Value, token: Value) -> None:
    """One group of 256, as `_quantize32`."""
    b = e.b
    vectors = [e.load(x, v16f32, 64 * i) for i in range(16)]
    dx, inverse = _scales(e, vectors)
    factor = e.splat(inverse, v16f32)
    e.store(dx, e.add(out, e.mul(token, 4)))
    sums = []
    for i, v in enumerate(vectors):
        code = _round(e, b.fmul(v, factor))
        sums.append(e.hsum(code))
        place = e.add(out, e.mul(size, 84 + 32 * (i // 2)))
        e.store(b.trunc(code, vec(i8, 16)), e.add(place, e.mul(token, 32)), 16 * (i % 2))
    for s in range(8):
        total = b.trunc(b.add(sums[2 * s], sums[2 * s + 1]), i16)
        place = e.add(out, e.mul(size, 4 + 4 * (s // 2)))
        e.store(total, e.add(place, e.mul(token, 4)), 2 * (s % 2), 2)
    for s in range(16):
        minus = b.mul(sums[s], ir.Constant(i32, -32))
        place = e.add(out, e.mul(size, 20 + 4 * s))
        e.store(minus, e.add(place, e.mul(token, 4)))


@kernel(N, I, I, I)
def _zero_group32(e: Emitter, out: Value, size: Value, token: Value) -> None:
    """A group of zeros: the unused half of a row's last pair of blocks."""
    at = e.add(out, e.mul(token, 4))
    for field in (0, 4, 8):
        e.store(ir.Constant(i32, 0), e.b.add(at, e.mul(size, field)))
    place = e.b.add(e.b.add(out, e.mul(size, 12)), e.mul(token, 32))
    e.store(e.splat(0, vec(i8, 32)), place)


@compiled
def quantize(
    kind: int,
    row: int,
    first: int,
    columns: int,
    last: int,
    x: int,
    token_bytes: int,
    num_tokens: int,
    token: int,
) -> None:
    """Write columns [first, first + columns) of a token's row into its place among the tiles at x.

    `row` is the address of column `first`, a multiple of 256. `last`: 1 if the row ends here, then
    its padding is written too. `kind`: 0 float32, 1 groups of 32, 2 groups of 256.
    """
    size = tile_size(num_tokens, token, LARGEST_TILE)
    start = token & -size
    tile, inside = x + start * token_bytes, token - start
    if kind == 1:
        group = first // 32
        for g in range(columns // 32):
            _quantize32(row + 128 * g, tile + (group + g) * 44 * size, size, inside)
        group += columns // 32
        if last != 0 and group % 2 != 0:
            _zero_group32(tile + group * 44 * size, size, inside)
    elif kind == 2:
        for g in range(columns // 256):
            _quantize256(row + 1024 * g, tile + (first // 256 + g) * 340 * size, size, inside)
    else:
        for c in range(columns):
            store_f32(tile + 4 * ((first + c) * size + inside), load_f32(row + 4 * c))
        if last != 0:
            for c in range(first + columns, (first + columns + 3) // 4 * 4):
                store_f32(tile + 4 * (c * size + inside), 0.0)
