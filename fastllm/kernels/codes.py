"""What each weight format is: how its panels lie, and what codes and scales their bytes mean.

A class a format, and `FORMATS` with all of them: nothing else in ``kernels`` names a format. What
multiplies codes (``kernels.dot``, ``kernels.amx``) knows its base class only. A code is an unsigned
byte: four of them, of neighbouring columns, are a dword of a row, and a vector holds the dwords of
the panel's 16 rows. A weight is

    Block32     scale * (code - offset) + minimum            one scale per 32 columns
    Block256    d * scale * (code - offset) - dmin * minimum     scales within 256 columns
    Floats      the number itself

Offsets are not subtracted here: they enter exactly, through the sum of the activations.

Sources for the native blocks: ggml ``ggml-common.h`` (block_q4_0 ...). The main process reads the
layouts, so nothing is imported here that compiles.
"""

# ruff: noqa: D102  what a method does is said where it is declared

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fastllm.kernels.panels import FLIP_SIGNS, SPREAD_BITS, PanelLayout, dwords, pair_of_blocks

if TYPE_CHECKING:
    from fastllm.kernels.emit import Value
    from fastllm.kernels.stream import Stream

# Values of iq4_nl and iq4_xs codes (ggml-common.h, kvalues_iq4nl), as unsigned + 128
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_TABLE = tuple(v + 128 for v in _IQ4)

Pairs = Sequence[tuple[Callable[[], "Value"], int]]
"""(thunk giving four codes of 16 rows, which dword of the activations they are multiplied with)

A thunk, so that what unpacks codes stands beside what uses them and needs few registers.
"""


class Codes:
    """A weight format; an instance writes the unpacking of one panel, which it reads by `read`."""

    layout: ClassVar[PanelLayout]

    def __init__(self, read: Stream) -> None:
        self.read, self.e = read, read.e


def _nibbles(
    read: Stream, w: Value, at: Any, finish: Callable[[Value, int], Value] | None = None
) -> Pairs:
    """32 columns in 4 pieces: low nibbles are columns 0 to 15, high nibbles 16 to 31.

    ``finish(code, dword)`` makes the code of a nibble where it is another.
    """
    e = read.e
    pairs: list[tuple[Callable[[], Value], int]] = []
    for g in range(4):
        loaded = read.piece(w, at + 64 * g)
        for top in (0, 1):
            code = e.b.and_(e.shr(loaded, 4 * top), e.k(0x0F0F0F0F))
            if finish is not None:
                code = finish(code, g + 4 * top)
            pairs.append((lambda v=code: v, g + 4 * top))  # type: ignore[misc]
    return pairs


# --------------------------------------------------------------------------- a scale per 32 columns
class Block32(Codes):
    """Formats with a scale per 32 columns. A unit holds one block of them, or two.

    Attributes
    ----------
    offset : int
        What a code stands above its value, a power of two up to 128; 0 for none. Codes of a format
        with 128 may be up to 255, others up to 127.
    has_minimum : bool
        Whether a block has a minimum; then it has no offset. Its 16-bit fields follow the scales'.
    """

    offset: ClassVar[int] = 0
    has_minimum: ClassVar[bool] = False

    @property
    def blocks(self) -> int:
        """Blocks of a unit."""
        return self.layout.unit // 32

    def scale(self, w: Value, block: int) -> Value:
        """Scale of a block of the unit at w, float32."""
        return self.read.half(w, 32 * block)

    def minimum(self, w: Value, block: int) -> Value:
        """Minimum of a block of the unit at w, float32."""
        return self.read.half(w, 32 * (self.blocks + block))

    def codes(self, w: Value, block: int) -> Pairs:
        """Codes of a block of the unit at w, read in the order of addresses."""
        layout = self.layout
        pieces = len(layout.dwords) // self.blocks
        return self.unpack(w, 32 * len(layout.halves) + 64 * pieces * block)

    def unpack(self, w: Value, at: int) -> Pairs:
        """Codes of the block whose pieces begin at w + at."""
        raise NotImplementedError


class Q4_0(Block32):
    """Nibbles."""

    layout = pair_of_blocks("q4_0", 18, (0,), dwords(2, 4))
    offset = 8

    def unpack(self, w: Value, at: int) -> Pairs:
        return _nibbles(self.read, w, at)


class Q4_1(Q4_0):
    """As q4_0, with a minimum."""

    layout = PanelLayout("q4_1", 32, 20, (0, 2), dwords(4, 4), "q32")
    offset, has_minimum = 0, True


class Q5_0(Block32):
    """Nibbles, and a piece with all the high bits, spread for one shift and one mask a dword."""

    layout = pair_of_blocks("q5_0", 22, (0,), ((2, SPREAD_BITS), *dwords(6, 4)))
    offset = 16

    def unpack(self, w: Value, at: int) -> Pairs:
        e = self.e
        high_bits = self.read.piece(w, at)

        def finish(code: Value, dword: int) -> Value:
            bit = e.b.and_(e.shr(high_bits, dword), e.k(0x01010101))
            return e.b.or_(code, e.shl(bit, 4))

        return _nibbles(self.read, w, at + 64, finish)


class Q5_1(Q5_0):
    """As q5_0, with a minimum."""

    layout = PanelLayout("q5_1", 32, 24, (0, 2), ((4, SPREAD_BITS), *dwords(8, 4)), "q32")
    offset, has_minimum = 0, True


class Q8_0(Block32):
    """Bytes; packing has made them unsigned."""

    layout = pair_of_blocks("q8_0", 34, (0,), dwords(2, 8, FLIP_SIGNS))
    offset = 128

    def unpack(self, w: Value, at: int) -> Pairs:
        return [(partial(self.read.piece, w, at + 64 * g), g) for g in range(8)]


class IQ4_NL(Block32):
    """Nibbles that index a table of uneven steps."""

    layout = pair_of_blocks("iq4_nl", 18, (0,), dwords(2, 4))
    offset = 128

    def unpack(self, w: Value, at: int) -> Pairs:
        return _nibbles(self.read, w, at, lambda code, _: self.e.lookup16(code, IQ4_TABLE))


# --------------------------------------------------------------------------- K-quants: 256 columns
class Header(NamedTuple):
    """Scales of 256 columns.

    Attributes
    ----------
    d : float32 vector
    scales : list of int32 vectors
        Of each sub-block, signed.
    dmin : float32 vector, optional
    minima : list of int32 vectors
        Where sub-blocks have 16 columns the minimum of each; where they have 32, those of two
        sub-blocks as int16. Empty where there are none.
    """

    d: Value
    scales: Sequence[Value]
    dmin: Value | None = None
    minima: Sequence[Value] = ()


class SubBlock(NamedTuple):
    """Codes that share a scale, by the number of the sub-block.

    They are `half` of the 32 columns `group`, or all of them (None). Numbers are Python ints where
    chunks are unrolled, else int64.
    """

    number: Any
    group: Any
    half: Any
    pairs: Pairs


class Block256(Codes):
    """Formats with 256 columns a unit, in sub-blocks with small scales of their own.

    Attributes
    ----------
    columns : int
        Of a sub-block, 16 or 32.
    chunks : int
        Steps in which the codes of a unit are unpacked.
    offset : int
        As of `Block32`.
    """

    columns: ClassVar[int]
    chunks: ClassVar[int]
    offset: ClassVar[int] = 0

    def header(self, w: Value) -> Header:
        """Scales of the unit at w."""
        raise NotImplementedError

    def chunk(self, w: Value, j: Any) -> Iterable[SubBlock]:
        """Sub-blocks of step j of the unit at w."""
        raise NotImplementedError

    def signed_byte(self, v: Value, index: int) -> Value:
        """Signed byte `index` of every dword."""
        return self.e.sar(self.e.shl(v, 24 - 8 * index), 24)


class Q4_K(Block256):
    """64 columns a step: low nibbles then high nibbles of 8 pieces."""

    layout = PanelLayout("q4_k", 256, 144, (0, 2), (*dwords(4, 3), *dwords(16, 32)), "q256")
    columns, chunks = 32, 4
    first = 256  # where the nibbles begin

    def header(self, w: Value) -> Header:
        e, b, read = self.e, self.e.b, self.read
        d, dmin = read.half(w, 0), read.half(w, 32)
        h = [read.piece(w, 64 + 64 * i) for i in range(3)]
        six, four, two = e.k(0x3F3F3F3F), e.k(0x0F0F0F0F), e.k(0x30303030)
        low = [b.and_(h[0], six), b.or_(b.and_(h[2], four), b.and_(e.shr(h[0], 2), two))]
        mins = [
            b.and_(h[1], six),
            b.or_(b.and_(e.shr(h[2], 4), four), b.and_(e.shr(h[1], 2), two)),
        ]
        pairs = []
        for s in range(4):
            v = e.shr(mins[s // 2], 16 * (s % 2))
            pairs.append(b.or_(b.and_(v, e.k(255)), e.shl(b.and_(v, e.k(0xFF00)), 8)))
        return Header(d, [e.byte(low[s // 4], s % 4) for s in range(8)], dmin, pairs)

    def chunk(self, w: Value, j: Any) -> Iterator[SubBlock]:
        e, b = self.e, self.e.b
        loaded = self.read.pieces(e.add(w, e.mul(j, 512)), self.first, 8)
        for p in (0, 1):
            group = e.add(e.mul(j, 2), p)

            def code(g: int, p: int = p, group: Any = group) -> Value:
                low = b.and_(e.shr(loaded(g), 4 * p), e.k(0x0F0F0F0F))
                return self.with_high_bit(low, w, g, group)

            yield SubBlock(group, group, None, [(partial(code, g), g) for g in range(8)])

    def with_high_bit(self, code: Value, w: Value, g: int, group: Any) -> Value:  # noqa: ARG002
        """Codes of dword g, 32 columns `group`, whose low bits are `code`."""
        return code


class Q5_K(Q4_K):
    """As q4_k, with 8 pieces before the nibbles that hold a fifth bit: bit `group` of a byte."""

    layout = PanelLayout(
        "q5_k", 256, 176, (0, 2), (*dwords(4, 3), *dwords(16, 8), *dwords(48, 32)), "q256"
    )
    first = 768

    def with_high_bit(self, code: Value, w: Value, g: int, group: Any) -> Value:
        e = self.e
        bit = e.b.and_(e.shr(self.read.again(w, 256 + 64 * g), group), e.k(0x01010101))
        return e.b.or_(code, e.shl(bit, 4))


class _Quarters(Block256):
    """Formats with a scale per 16: step (h, p) has columns 128 h + 32 q + 16 p + 0..15, all q."""

    columns, chunks = 16, 4

    def halves(self, j: Any) -> tuple[Any, Any]:
        """(h, p) of step j."""
        if isinstance(j, int):
            return j >> 1, j & 1
        return self.e.b.lshr(j, self.e.c(1)), self.e.b.and_(j, self.e.c(1))

    def chunk(self, w: Value, j: Any) -> Iterator[SubBlock]:
        e = self.e
        h, p = self.halves(j)
        code = self.code(w, j)
        for q in range(4):
            pairs = [(partial(code, q, g), g) for g in range(4)]
            number = e.add(e.add(e.mul(h, 8), p), 2 * q)
            yield SubBlock(number, e.add(e.mul(h, 4), q), p, pairs)

    def code(self, w: Value, j: Any) -> Callable[[int, int], Value]:
        """Return what gives the codes of step j by (q, dword)."""
        raise NotImplementedError


class Q2_K(_Quarters):
    """Two bits."""

    layout = PanelLayout(
        "q2_k", 256, 84, (80, 82),
        (*dwords(0, 4), *(m for at in (16, 32, 48, 64) for m in dwords(at, 4))), "q256",
    )  # fmt: skip

    def header(self, w: Value) -> Header:
        e, b, read = self.e, self.e.b, self.read
        d, dmin = read.half(w, 0), read.half(w, 32)
        packed = [read.piece(w, 64 + 64 * i) for i in range(4)]
        scales = [b.and_(e.shr(packed[s // 4], 8 * (s % 4)), e.k(15)) for s in range(16)]
        minima = [b.and_(e.shr(packed[s // 4], 8 * (s % 4) + 4), e.k(15)) for s in range(16)]
        return Header(d, scales, dmin, minima)

    def code(self, w: Value, j: Any) -> Callable[[int, int], Value]:
        e = self.e
        loaded = self.read.pieces(e.add(w, e.mul(j, 256)), 320, 4)
        return lambda q, g: e.b.and_(e.shr(loaded(g), 2 * q), e.k(0x03030303))


class Q3_K(_Quarters):
    """Two low bits, and 8 pieces before them with the third."""

    layout = PanelLayout(
        "q3_k", 256, 110, (108, -1), (*dwords(96, 3), *dwords(0, 8), *dwords(32, 16)), "q256"
    )
    offset = 4

    def header(self, w: Value) -> Header:
        e, b, read = self.e, self.e.b, self.read
        d = read.half(w, 0)
        low, high, top = (read.piece(w, 64 + 64 * i) for i in range(3))
        four, two = e.k(0x0F0F0F0F), e.k(0x30303030)
        packed = [
            b.or_(b.and_(low, four), b.and_(e.shl(top, 4), two)),
            b.or_(b.and_(high, four), b.and_(e.shl(top, 2), two)),
            b.or_(b.and_(e.shr(low, 4), four), b.and_(top, two)),
            b.or_(b.and_(e.shr(high, 4), four), b.and_(e.shr(top, 2), two)),
        ]
        thirty_two = e.k(32)
        return Header(d, [b.sub(e.byte(packed[s // 4], s % 4), thirty_two) for s in range(16)])

    def code(self, w: Value, j: Any) -> Callable[[int, int], Value]:
        e, b = self.e, self.e.b
        loaded = self.read.pieces(e.add(w, e.mul(j, 256)), 768, 4)
        h, p = self.halves(j)
        masks = e.add(w, e.mul(p, 256))

        def code(q: int, g: int) -> Value:
            low = b.and_(e.shr(loaded(g), 2 * q), e.k(0x03030303))
            mask = self.read.again(masks, 256 + 64 * g)
            bit = b.and_(e.shr(mask, e.add(e.mul(h, 4), q)), e.k(0x01010101))
            return b.or_(low, e.shl(bit, 2))

        return code


class Q6_K(_Quarters):
    """Four low and two high bits; scales are signed bytes."""

    layout = PanelLayout(
        "q6_k", 256, 210, (208, -1),
        (
            *dwords(192, 4),
            *(
                move  # of a step (h, p): high bits, low bits of the quarters 0 and 2, of 1 and 3
                for h in (0, 1) for p in (0, 1)
                for at in (128 + 32 * h, 64 * h, 64 * h + 32)
                for move in dwords(at + 16 * p, 4)
            ),
        ),
        "q256",
    )  # fmt: skip
    offset = 32

    def header(self, w: Value) -> Header:
        d = self.read.half(w, 0)
        packed = [self.read.piece(w, 64 + 64 * i) for i in range(4)]
        return Header(d, [self.signed_byte(packed[s // 4], s % 4) for s in range(16)])

    def code(self, w: Value, j: Any) -> Callable[[int, int], Value]:
        e, b = self.e, self.e.b
        loaded = self.read.pieces(e.add(w, e.mul(j, 768)), 320, 12)

        def code(q: int, g: int) -> Value:
            low = e.shr(loaded(4 + 4 * (q % 2) + g), 4 * (q // 2))
            high = loaded(g)
            moved = e.shl(high, 4 - 2 * q) if q < 2 else e.shr(high, 2 * q - 4)
            return b.or_(b.and_(low, e.k(0x0F0F0F0F)), b.and_(moved, e.k(0x30303030)))

        return code


class IQ4_XS(Block256):
    """As iq4_nl, 32 columns a step; scales of six bits."""

    layout = PanelLayout("iq4_xs", 256, 136, (0, 2), (*dwords(4, 1), *dwords(8, 32)), "q256")
    columns, chunks = 32, 8
    offset = 128

    def header(self, w: Value) -> Header:
        e, b = self.e, self.e.b
        d, high, low = self.read.half(w, 0), self.read.short(w, 32), self.read.piece(w, 64)
        scales = []
        for s in range(8):
            six = b.or_(
                b.and_(e.shr(low, 4 * s), e.k(15)),
                e.shl(b.and_(e.shr(high, 2 * s), e.k(3)), 4),
            )
            scales.append(b.sub(six, e.k(32)))
        return Header(d, scales)

    def chunk(self, w: Value, j: Any) -> Iterator[SubBlock]:
        e = self.e
        at = e.add(w, e.mul(j, 256))
        pairs = _nibbles(self.read, at, 128, lambda code, _: e.lookup16(code, IQ4_TABLE))
        yield SubBlock(j, j, None, pairs)


# --------------------------------------------------------------------------- float weights
class Floats(Codes):
    """Weights that are numbers: four columns a unit."""

    def weights(self, w: Value, column: int) -> Value:
        """Weights of a column of the unit at w, float32."""
        raise NotImplementedError


class F32(Floats):
    """float32."""

    layout = PanelLayout("f32", 4, 16, (), dwords(0, 4), "f32")

    def weights(self, w: Value, column: int) -> Value:
        return self.read.single(w, 64 * column)


class F16(Floats):
    """IEEE half precision."""

    layout = PanelLayout("f16", 4, 8, (0, 2, 4, 6), (), "f32")

    def weights(self, w: Value, column: int) -> Value:
        return self.read.half(w, 32 * column)


class BF16(Floats):
    """bfloat16."""

    layout = PanelLayout("bf16", 4, 8, (0, 2, 4, 6), (), "f32")

    def weights(self, w: Value, column: int) -> Value:
        return self.read.bfloat(w, 32 * column)


FORMATS: dict[str, type[Codes]] = {
    codes.layout.name: codes
    for codes in (
        Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, F32, F16, BF16,
    )
}  # fmt: skip
"""Formats whose matrices can be multiplied, by ggml's name."""
