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

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from fastllm.kernels.dot import Block32, Block256, Pairs
from fastllm.kernels.emit import Emitter, Value, i8, v16f32, v16i32
from fastllm.kernels.layouts import LAYOUTS

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
        width = 16 if _sub_columns(name) == 16 else 32
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


def _sub_columns(name: str) -> int:
    """Columns that share a scale."""
    return 16 if name in ("q2_k", "q3_k", "q6_k") else 32


def tiles_generator(name: str) -> Callable[..., None]:
    """Return the generator of (panel, x, out, groups, token_bytes, units, scratch).

    ``out[token][0:16]`` for ``16 * groups`` tokens, whose activations lie at x in tiles of 16.
    """
    layout = LAYOUTS[name]

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
        work = _Tiles256 if layout.activations == "q256" else _Tiles32
        b = e.b

        def clear(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.splat(0.0, v16f32), e.add(out, e.mul(i, 64)), 0, 64)
            return []

        e.loop(e.mul(groups, TOKENS), [], clear)
        kernel = work(e, name, scratch)
        per_chunk = kernel.units_per_chunk
        chunks = b.sdiv(b.add(units, e.c(per_chunk - 1)), e.c(per_chunk))

        def chunk(i: Value, _: list[Value]) -> list[Value]:
            first = e.mul(i, per_chunk)
            left = b.sub(units, first)
            few = b.icmp_signed("<", left, e.c(per_chunk))
            count = b.select(few, left, e.c(per_chunk))
            kernel.unpack(e.add(panel, e.mul(first, layout.unit_bytes)), count)

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
class _Unpack32(Block32):
    """Codes of a block as bytes, scales as floats, into scratch."""

    def store(self, w: Value, block: int, scratch: Value, at: Value) -> None:
        """Block `block` of the unit at w becomes block number `at` (int64) of the chunk."""
        e = self.e
        codes = e.add(scratch, e.mul(at, 512))
        for weights, dword in self.codes(w, block):
            e.store(weights(), codes, _BYTES + 64 * dword, 64)
        fields = e.add(scratch, e.mul(at, 128))
        scale = 0 if self.has_min else block
        e.store(self.half(w, 32 * scale), fields, _FIELDS, 64)
        if self.has_min:
            e.store(self.half(w, 32), fields, _FIELDS + 64, 64)


class _Tiles32:
    """q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl: chunks of 8 blocks."""

    def __init__(self, e: Emitter, name: str, scratch: Value) -> None:
        self.e, self.scratch = e, scratch
        self.format = _Unpack32(e, name, TOKENS, 0)
        self.blocks = self.format.blocks
        self.units_per_chunk = 8 // self.blocks

    def unpack(self, w: Value, count: Value) -> None:
        e, blocks = self.e, self.blocks

        def unit(i: Value, _: list[Value]) -> list[Value]:
            at = e.add(w, e.mul(i, self.format.layout.unit_bytes))
            for s in range(blocks):
                self.format.store(at, s, self.scratch, e.add(e.mul(i, blocks), s))
            return []

        e.loop(count, [], unit)

    def accumulate(self, x: Value, first: Value, count: Value, out: Value) -> None:
        e, b, blocks, form = self.e, self.e.b, self.blocks, self.format
        group = 44 * TOKENS
        start = e.add(x, e.mul(first, group * blocks))
        sums = [e.load(out, v16f32, 64 * t, 64) for t in range(TOKENS)]

        def places(i: Value) -> tuple[Value, Value]:
            a = e.add(start, e.mul(i, group))
            return e.add(a, 12 * TOKENS), e.add(self.scratch, e.mul(i, 512))

        def block(i: Value, dots: list[Value], sums: list[Value]) -> list[Value]:
            a = e.add(start, e.mul(i, group))
            fields = e.add(self.scratch, e.mul(i, 128))
            d = e.load(fields, v16f32, _FIELDS, 64)
            minimum = e.load(fields, v16f32, _FIELDS + 64, 64) if form.has_min else None
            new = []
            for t in range(TOKENS):
                dot = dots[t]
                if not form.has_min:
                    offset = e.bcast(a, v16i32, 8 * TOKENS + 4 * t)
                    dot = b.add(dot, e.sar(offset, form.offset_shift))
                new.append(form.scaled(a, t, dot, d, minimum, sums[t]))
            return new

        sums = _Products(e, self.scratch, places).loop(e.mul(count, blocks), sums, block)
        for t in range(TOKENS):
            e.store(sums[t], out, 64 * t, 64)


# --------------------------------------------------------------------------- K-quants: 256 columns
class _Unpack256(Block256):
    """The chunk functions of `Block256`, storing codes where those multiply."""

    def __init__(self, e: Emitter, name: str, scratch: Value) -> None:
        super().__init__(e, name, TOKENS, 0)
        self.unroll = True  # sub-block numbers are Python ints
        self.scratch = scratch

    def dots(
        self,
        pairs: Pairs,
        codes: Value,  # noqa: ARG002
        offset: Any,  # noqa: ARG002
        start: Sequence[Value],  # noqa: ARG002
        wide: bool = False,  # noqa: ARG002
    ) -> list[Value]:
        """Return the codes themselves; the caller knows which sub-block they are."""
        return [weights() for weights, _ in sorted(pairs, key=lambda pair: pair[1])]

    def starts(self, a: Value, s: Any, shift: int) -> list[Value]:  # noqa: ARG002
        """Return nothing: offsets enter in `_Tiles256.offset`."""
        return []

    def store(self, w: Value) -> None:
        """Codes of all sub-blocks to scratch, in order of columns."""
        steps, chunk = self.chunks()
        size = 64 * _sub_columns(self.name) // 4
        for j in range(steps):
            for s, pieces in chunk(w, w, j):
                for i, piece in enumerate(pieces):
                    self.e.store(piece, self.scratch, _BYTES + size * s + 64 * i, 64)


class _Tiles256:
    """q2_k q3_k q4_k q5_k q6_k iq4_xs: a chunk is one super-block."""

    units_per_chunk = 1

    def __init__(self, e: Emitter, name: str, scratch: Value) -> None:
        self.e, self.name, self.scratch = e, name, scratch
        self.format = _Unpack256(e, name, scratch)
        self.columns = _sub_columns(name)
        self.subs = 256 // self.columns
        self.header: tuple[Value, Value, list[Value]] | None = None

    def unpack(self, w: Value, _count: Value) -> None:
        e = self.e
        d, dmin, scales, minima = self.format.header(w)
        for s, scale in enumerate(scales):
            e.store(e.to_float(scale), self.scratch, _FIELDS + 64 * s, 64)
        self.header = (d, dmin, minima)
        self.format.store(w)

    def accumulate(self, x: Value, first: Value, _count: Value, out: Value) -> None:
        assert self.header is not None
        e, b, form = self.e, self.e.b, self.format
        d, dmin, minima = self.header
        a = e.add(x, e.mul(first, 340 * TOKENS))
        codes = e.add(a, 84 * TOKENS)

        def places(s: Value) -> tuple[Value, Value]:
            if self.columns == 32:
                place = e.add(codes, e.mul(s, 32 * TOKENS))
            else:
                pair, odd = b.lshr(s, e.c(1)), b.and_(s, e.c(1))
                place = e.add(e.add(codes, e.mul(pair, 32 * TOKENS)), e.mul(odd, 16))
            return place, e.add(self.scratch, e.mul(s, 16 * self.columns))

        def sub(s: Value, dots: list[Value], totals: list[Value]) -> list[Value]:
            z = e.load(e.add(self.scratch, e.mul(s, 64)), v16f32, _FIELDS, 64)
            return [
                e.fma(e.to_float(self.offset(dots[t], a, s, t)), z, totals[t])
                for t in range(TOKENS)
            ]

        zeros = [e.splat(0.0, v16f32)] * TOKENS
        totals = _Products(e, self.scratch, places).loop(self.subs, zeros, sub)
        for t in range(TOKENS):
            acc = form.scaled(a, t, totals[t], d, e.load(out, v16f32, 64 * t, 64))
            if minima:
                acc = form.minus_minima(a, t, minima, dmin, acc)
            e.store(acc, out, 64 * t, 64)

    def offset(self, dot: Value, a: Value, s: Value, t: int) -> Value:
        """Add what the offset of the codes contributes: -offset * sum of the activations."""
        e, b, sums = self.e, self.e.b, 20 * TOKENS
        shift = {"q6_k": 0, "q3_k": 3}.get(self.name)
        if shift is not None:
            at = e.add(a, e.mul(s, 4 * TOKENS))
            return b.add(dot, e.sar(e.bcast(at, v16i32, sums + 4 * t), shift))
        if self.name == "iq4_xs":
            at = e.add(a, e.mul(s, 8 * TOKENS))
            first = e.bcast(at, v16i32, sums + 4 * t)
            second = e.bcast(at, v16i32, sums + 4 * (TOKENS + t))
            return b.add(dot, e.shl(b.add(first, second), 2))
        return dot
