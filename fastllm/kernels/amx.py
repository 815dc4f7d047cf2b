"""Sixteen tokens at a time through AMX tiles, with the bits of ``kernels.dot``.

A tile product is an exact integer dot product, like vpdpbusd, only 16 tokens x 16 rows at once;
every float operation of a (row, token) is the same, in the same order, as in ``kernels.dot``. So a
prompt may run here and a single token there, and nobody can tell from the result.

What bounds it is no longer the dot product but moving its result: load, multiply, store and load
again take about 60 cycles a block of 32 columns (16 for the multiplication itself), so this is 1.3
times (q4_1) to 1.5 times (q4_k) vpdpbusd. Weights are unpacked to bytes once for all tokens of up
to 256 columns, in first-level cache.

Operands: activations (signed) are the rows of tile A, 16 tokens x 32 (or 16) bytes as they lie in a
tile of 16; a block of weights (unsigned) is tile B, one unpacked 64-byte piece a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastllm.kernels.codes import FORMATS, Block32, Block256, Codes, Header
from fastllm.kernels.dot import Product32, Product256
from fastllm.kernels.emit import Emitter, Value, i8, v16f32, v16i32
from fastllm.kernels.stream import Stream

TOKENS = 16  # of a tile
_A, _B, _C = 0, 1, 2  # tile registers
# Offsets in the scratch of `tiles_generator`
_BYTES, _FIELDS, _SUMS, _CONFIG = 0, 4096, 5120, 6144


def _pointer(e: Emitter, address: Value, offset: Any = 0) -> Value:
    return e.b.inttoptr(e.add(address, offset), i8.as_pointer())


def _tile(e: Emitter, name: str, *args: Any) -> None:
    values = [e.c(a, i8) if isinstance(a, int) else a for a in args]
    function = e.fn(f"llvm.x86.{name}", ir.VoidType(), [v.type for v in values])
    e.b.call(function, values)


def _load(e: Emitter, tile: int, address: Value, stride: int) -> None:
    _tile(e, "tileloadd64", tile, _pointer(e, address), e.c(stride))


def configure(name: str) -> Callable[..., None]:
    """Generator of (scratch): tile shapes for weight format `name`, for the calling thread."""

    def generate(e: Emitter, scratch: Value) -> None:
        width = _columns(FORMATS[name])
        palette = [0] * 64
        palette[0] = 1
        for tile, (rows, row_bytes) in {
            _A: (TOKENS, width),
            _B: (width // 4, 64),
            _C: (TOKENS, 64),
        }.items():
            palette[16 + 2 * tile] = row_bytes
            palette[48 + tile] = rows
        bytes_ = ir.Constant(ir.VectorType(i8, 64), [ir.Constant(i8, v) for v in palette])
        e.store(bytes_, scratch, _CONFIG, 64)
        _tile(e, "ldtilecfg", _pointer(e, scratch, _CONFIG))

    return generate


def release(e: Emitter) -> None:
    """Give the tiles back: a thread without tile state is cheaper to switch."""
    _tile(e, "tilerelease")


def _columns(codes: type[Codes]) -> int:
    """Columns that share a scale."""
    return codes.columns if issubclass(codes, Block256) else 32


def tiles_generator(name: str) -> Callable[..., None]:
    """Return the generator of (panel, x, out, groups, token_bytes, units, scratch).

    ``out[token][0:16]`` for ``16 * groups`` tokens, whose activations lie at x in tiles of 16.
    """
    unit_bytes = FORMATS[name].layout.unit_bytes

    def generate(
        e: Emitter,
        panel: Value,
        x: Value,
        out: Value,
        groups: Value,
        token_bytes: Value,
        units: Value,
        scratch: Value,
    ) -> None:
        b = e.b
        codes = FORMATS[name](Stream(e))
        kernel: _Tiles32 | _Tiles256
        if isinstance(codes, Block32):
            kernel = _Tiles32(e, codes, scratch)
        else:
            assert isinstance(codes, Block256)
            kernel = _Tiles256(e, codes, scratch)

        def clear(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.splat(0.0, v16f32), e.add(out, e.mul(i, 64)), 0, 64)
            return []

        e.loop(e.mul(groups, TOKENS), [], clear)
        per_chunk = kernel.units_per_chunk
        chunks = b.sdiv(b.add(units, e.c(per_chunk - 1)), e.c(per_chunk))

        def chunk(i: Value, _: list[Value]) -> list[Value]:
            first = e.mul(i, per_chunk)
            left = b.sub(units, first)
            few = b.icmp_signed("<", left, e.c(per_chunk))
            count = b.select(few, left, e.c(per_chunk))
            kernel.unpack(e.add(panel, e.mul(first, unit_bytes)), count)

            def group(g: Value, _: list[Value]) -> list[Value]:
                a = b.add(x, e.mul(e.mul(g, TOKENS), token_bytes))
                kernel.accumulate(a, first, count, e.add(out, e.mul(g, 64 * TOKENS)))
                return []

            e.loop(groups, [], group)
            return []

        e.loop(chunks, [], chunk)

    return generate


class _Products:
    """Tile products of blocks of columns: int32[16 tokens][16 rows], through one buffer in scratch.

    Measured and dropped: two and four products ahead of their use, in buffers of their own (equal
    for K-quants, 10 to 25 % slower for formats with a scale per 32).
    """

    def __init__(
        self, e: Emitter, scratch: Value, places: Callable[[Value], tuple[Value, Value]]
    ) -> None:
        """`places` gives the addresses of a block's activations and weights by its number."""
        self.e, self.scratch, self.places = e, scratch, places

    def loop(
        self,
        count: Any,
        state: list[Value],
        body: Callable[[Value, list[Value], list[Value]], list[Value]],
    ) -> list[Value]:
        """``for i in range(count): state = body(i, dots of block i, state)``."""
        e = self.e

        def step(i: Value, values: list[Value]) -> list[Value]:
            activations, weights = self.places(i)
            _load(e, _A, activations, 32)
            _load(e, _B, weights, 64)
            _tile(e, "tilezero", _C)
            _tile(e, "tdpbsud", _C, _A, _B)
            _tile(e, "tilestored64", _C, _pointer(e, self.scratch, _SUMS), e.c(64))
            dots = [e.load(self.scratch, v16i32, _SUMS + 64 * t, 64) for t in range(TOKENS)]
            return body(i, dots, values)

        return e.loop(count, state, step)


# --------------------------------------------------------------------------- a scale per 32 columns
class _Tiles32:
    """Codes with a scale per 32 columns: chunks of 8 blocks."""

    def __init__(self, e: Emitter, codes: Block32, scratch: Value) -> None:
        self.e, self.codes, self.scratch = e, codes, scratch
        self.product = Product32(e, codes, TOKENS)
        self.units_per_chunk = 8 // codes.blocks

    def unpack(self, w: Value, count: Value) -> None:
        """Codes of `count` units as bytes, scales and minima as floats, into scratch."""
        e, codes = self.e, self.codes

        def unit(i: Value, _: list[Value]) -> list[Value]:
            at = e.add(w, e.mul(i, codes.layout.unit_bytes))
            for s in range(codes.blocks):
                self._unpack_block(at, s, e.add(e.mul(i, codes.blocks), s))
            return []

        e.loop(count, [], unit)

    def _unpack_block(self, w: Value, s: int, at: Value) -> None:
        """Block s of the unit at w becomes block number `at` of the chunk."""
        e, codes = self.e, self.codes
        place = e.add(self.scratch, e.mul(at, 512))
        for weights, dword in codes.codes(w, s):
            e.store(weights(), place, _BYTES + 64 * dword, 64)
        fields = e.add(self.scratch, e.mul(at, 128))
        e.store(codes.scale(w, s), fields, _FIELDS, 64)
        if codes.has_minimum:
            e.store(codes.minimum(w, s), fields, _FIELDS + 64, 64)

    def accumulate(self, x: Value, first: Value, count: Value, out: Value) -> None:
        """Add the chunk's products with the 16 tokens at x to their sums."""
        e, b, codes, product = self.e, self.e.b, self.codes, self.product
        group = 44 * TOKENS
        start = e.add(x, e.mul(first, group * codes.blocks))
        sums = [e.load(out, v16f32, 64 * t, 64) for t in range(TOKENS)]

        def places(i: Value) -> tuple[Value, Value]:
            a = e.add(start, e.mul(i, group))
            return e.add(a, 12 * TOKENS), e.add(self.scratch, e.mul(i, 512))

        def block(i: Value, dots: list[Value], sums: list[Value]) -> list[Value]:
            a = e.add(start, e.mul(i, group))
            fields = e.add(self.scratch, e.mul(i, 128))
            d = e.load(fields, v16f32, _FIELDS, 64)
            minimum = e.load(fields, v16f32, _FIELDS + 64, 64) if codes.has_minimum else None
            new = []
            for t in range(TOKENS):
                dot = b.add(dots[t], product.minus_offset(a, t)) if codes.offset else dots[t]
                new.append(product.scaled(a, t, dot, d, minimum, sums[t]))
            return new

        sums = _Products(e, self.scratch, places).loop(e.mul(count, codes.blocks), sums, block)
        for t in range(TOKENS):
            e.store(sums[t], out, 64 * t, 64)


# --------------------------------------------------------------------------- K-quants: 256 columns
class _Tiles256:
    """Codes with scales of sub-blocks within 256 columns: a chunk is one unit."""

    units_per_chunk = 1

    def __init__(self, e: Emitter, codes: Block256, scratch: Value) -> None:
        self.e, self.codes, self.scratch = e, codes, scratch
        self.product = Product256(e, codes, TOKENS, None)
        self.header: Header | None = None

    def unpack(self, w: Value, _count: Value) -> None:
        """Codes of all sub-blocks as bytes, in order of columns, scales as floats, into scratch."""
        e, codes = self.e, self.codes
        self.header = codes.header(w)
        for s, scale in enumerate(self.header.scales):
            e.store(e.to_float(scale), self.scratch, _FIELDS + 64 * s, 64)
        for j in range(codes.chunks):
            for sub in codes.chunk(w, j):
                first = _BYTES + 16 * codes.columns * sub.number
                for weights, dword in sub.pairs:
                    e.store(weights(), self.scratch, first + 64 * dword, 64)

    def accumulate(self, x: Value, first: Value, _count: Value, out: Value) -> None:
        """Add the unit's products with the 16 tokens at x to their sums."""
        assert self.header is not None
        e, b, codes, product = self.e, self.e.b, self.codes, self.product
        header = self.header
        a = e.add(x, e.mul(first, 340 * TOKENS))
        activations = e.add(a, 84 * TOKENS)

        def places(s: Value) -> tuple[Value, Value]:
            if codes.columns == 32:
                place = e.add(activations, e.mul(s, 32 * TOKENS))
            else:
                pair, odd = b.lshr(s, e.c(1)), b.and_(s, e.c(1))
                place = e.add(e.add(activations, e.mul(pair, 32 * TOKENS)), e.mul(odd, 16))
            return place, e.add(self.scratch, e.mul(s, 16 * codes.columns))

        def sub(s: Value, dots: list[Value], totals: list[Value]) -> list[Value]:
            z = e.load(e.add(self.scratch, e.mul(s, 64)), v16f32, _FIELDS, 64)
            new = []
            for t in range(TOKENS):
                dot = b.add(dots[t], product.minus_offset(a, s, t)) if codes.offset else dots[t]
                new.append(e.fma(e.to_float(dot), z, totals[t]))
            return new

        zeros = [e.splat(0.0, v16f32)] * TOKENS
        subs = 256 // codes.columns
        totals = _Products(e, self.scratch, places).loop(subs, zeros, sub)
        for t in range(TOKENS):
            acc = product.scaled(a, t, totals[t], header.d, e.load(out, v16f32, 64 * t, 64))
            e.store(product.minus_minima(a, t, header, acc), out, 64 * t, 64)
