"""One panel of 16 rows times one tile of tokens: the heart of every matrix product.

The generators below write, for a weight format and a tile of R tokens, the loop over the columns.
Lanes are rows; a token's code is broadcast; the float accumulators of the R tokens stay in
registers. Each (row, token) sees the same operations in the same order whatever R is:

per 32 columns   acc = fma(float(dot), d * dx, acc)            (offsets enter dot exactly)
                 acc = fma(m, dx * sum, acc)                    formats with a minimum
per 256 columns  total = fma(float(dot), scale, total)          for each sub-block in order
                 acc = fma(total, d * dx, acc)
                 acc = fma(float(sum min * sum), -dmin * dx, acc)
floats           four interleaved chains of fma, added as (0 + 1) + (2 + 3)

so results are bit-identical for any number of tokens. At R <= 2 the columns of a super-block are
unrolled with loads kept in address order (the hardware prefetcher needs a linear stream); above, a
loop over sub-blocks keeps registers and code small, with decoded scales in 1 KiB of scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastllm.kernels.emit import Emitter, Value, v16f32, v16i16, v16i32
from fastllm.kernels.layouts import LAYOUTS

# Values of iq4_nl and iq4_xs codes (ggml-common.h, kvalues_iq4nl), as unsigned + 128
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_TABLE = tuple(v + 128 for v in _IQ4)

Pairs = Sequence[tuple[Callable[[], Value], int]]
"""(thunk giving 4 codes of 16 rows, dword index of the activations' 32 bytes)"""


class _Tile:
    """What all formats share: activations of a tile of `size` tokens, dot products over pieces."""

    def __init__(self, e: Emitter, size: int, ahead: int) -> None:
        self.e, self.size, self.tokens, self.ahead = e, size, range(size), ahead
        self.zero = e.splat(0, v16i32)
        # two independent integer chains hide latency at one token; integers, so the same sums
        self.chains = 2 if size == 1 else 1

    def half(self, address: Value, offset: Any) -> Value:
        """16 half-precision fields as floats."""
        return self.e.half_to_float(self.stream(address, v16i16, offset, 32))

    def piece(self, address: Value, offset: Any) -> Value:
        """One 64-byte piece of weights."""
        return self.stream(address, v16i32, offset, 64)

    def stream(self, address: Value, type_: Any, offset: Any, align: int) -> Value:
        """Load of the weights' linear stream, which asks for what comes `ahead` bytes later."""
        if self.ahead:
            self.e.prefetch(self.e.add(address, offset), self.ahead)
        return self.e.ordered_load(address, type_, offset, align)

    def dots(
        self, pairs: Pairs, codes: Value, offset: Any, start: Sequence[Value], wide: bool = False
    ) -> list[Value]:
        """Integer dot products of a group of pieces with every token of the tile."""
        e = self.e
        multiply = e.dp_wide if wide else e.dp
        sums = [[s] + [self.zero] * (self.chains - 1) for s in start]
        for n, (weights, dword) in enumerate(pairs):
            w = weights()
            for t in self.tokens:
                x = e.bcast(codes, v16i32, e.add(e.c(32 * t + 4 * dword), offset))
                chain = n % self.chains
                sums[t][chain] = multiply(sums[t][chain], w, x)
        return [s[0] if len(s) == 1 else e.b.add(s[0], s[1]) for s in sums]


def dot_generator(name: str, size: int, ahead: int = 0) -> Callable[..., None]:
    """Return the IR generator of (panel, activations, out, units, scratch).

    It writes ``out[token][0:16]``, float32, for `size` tokens. `ahead`: bytes between a load of
    weights and the software prefetch beside it, 0 for none.
    """
    families: dict[str, type[Block32] | type[Block256] | type[_Float]] = {
        "q32": Block32,
        "q256": Block256,
        "f32": _Float,
    }
    family = families[LAYOUTS[name].activations]

    def generate(
        e: Emitter, panel: Value, x: Value, out: Value, units: Value, scratch: Value
    ) -> None:
        sums = family(e, name, size, ahead).run(panel, x, units, scratch)
        for t in range(size):
            e.store(sums[t], out, 64 * t, 4)

    return generate


# --------------------------------------------------------------------------- a scale per 32 columns
class Block32(_Tile):
    """q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl."""

    def __init__(self, e: Emitter, name: str, size: int, ahead: int) -> None:
        super().__init__(e, size, ahead)
        self.name, self.layout = name, LAYOUTS[name]
        self.blocks = self.layout.unit // 32
        self.has_min = name in ("q4_1", "q5_1")
        self.wide = name in ("q8_0", "iq4_nl")
        # the codes' offset (8, 16, 128) enters through -128 * sum shifted down to -offset * sum
        self.offset_shift = {"q4_0": 4, "q5_0": 3}.get(name, 0)

    def run(self, panel: Value, x: Value, units: Value, _scratch: Value) -> list[Value]:
        """Return the tokens' accumulators after all units of a panel."""
        e, layout = self.e, self.layout
        group = 44 * self.size

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, layout.unit_bytes))
            a = e.add(x, e.mul(i, group * self.blocks))
            fields = [self.half(w, 32 * h) for h in range(len(layout.halves))]
            for s in range(self.blocks):
                minimum = fields[1] if self.has_min else None
                scale = fields[0] if self.has_min else fields[s]
                sums = self.block(w, s, e.add(a, group * s), scale, minimum, sums)
            return sums

        return e.loop(units, [e.splat(0.0, v16f32)] * self.size, unit)

    def block(
        self, w: Value, s: int, a: Value, d: Value, minimum: Value | None, sums: list[Value]
    ) -> list[Value]:
        """Add block s of the unit at w to the accumulators."""
        e, size = self.e, self.size
        start = []
        for t in self.tokens:
            if self.has_min:
                start.append(self.zero)
                continue
            minus_sum = e.sar(e.bcast(a, v16i32, 8 * size + 4 * t), self.offset_shift)
            start.append(e.wide_start(minus_sum) if self.wide else minus_sum)
        dots = self.dots(self.codes(w, s), a, 12 * size, start, self.wide)
        return [self.scaled(a, t, dots[t], d, minimum, sums[t]) for t in self.tokens]

    def scaled(
        self, a: Value, t: int, dot: Value, d: Value, minimum: Value | None, acc: Value
    ) -> Value:
        """Add a block's dot product to a token's accumulator."""
        e = self.e
        acc = e.fma(e.to_float(dot), e.b.fmul(d, e.bcast(a, v16f32, 4 * t)), acc)
        if minimum is not None:
            acc = e.fma(minimum, e.bcast(a, v16f32, 4 * self.size + 4 * t), acc)
        return acc

    def codes(self, w: Value, s: int) -> Pairs:
        """Pieces of block s of the unit at w, in address order."""
        e = self.e
        per_block = len(self.layout.dwords) // self.blocks
        first = 32 * len(self.layout.halves) + 64 * per_block * s
        if self.name == "q8_0":
            return [(lambda g=g: self.piece(w, first + 64 * g), g) for g in range(8)]  # type: ignore[misc]
        high_bits = None
        if self.name in ("q5_0", "q5_1"):
            high_bits = self.piece(w, first)
            first += 64
        pairs: list[tuple[Callable[[], Value], int]] = []
        for g in range(4):
            loaded = self.piece(w, first + 64 * g)
            for top in (0, 1):
                code = e.b.and_(e.shr(loaded, 4 * top), e.k(0x0F0F0F0F))
                if high_bits is not None:
                    bit = e.b.and_(e.shr(high_bits, g + 4 * top), e.k(0x01010101))
                    code = e.b.or_(code, e.shl(bit, 4))
                if self.name == "iq4_nl":
                    code = e.lookup16(code, IQ4_TABLE)
                pairs.append((lambda v=code: v, g + 4 * top))  # type: ignore[misc]
        return pairs


# --------------------------------------------------------------------------- K-quants: 256 columns
class _Scales:
    """Decoded sub-block scales as floats: SSA values while unrolled, scratch while looping.

    Floats, because cvt + fma is two operations where a 32-bit integer multiply and add is three;
    dot * scale stays below 2**24, exact in either.
    """

    def __init__(self, e: Emitter, values: Sequence[Value], scratch: Value | None) -> None:
        self.e, self.values, self.scratch = e, [e.to_float(v) for v in values], scratch
        if scratch is not None:
            for s, value in enumerate(self.values):
                e.store(value, scratch, 64 * s, 64)

    def __getitem__(self, s: Any) -> Value:
        if self.scratch is None:
            return self.values[s]
        return self.e.load(self.e.add(self.scratch, self.e.mul(s, 64)), v16f32, 0, 64)


class Block256(_Tile):
    """q2_k q3_k q4_k q5_k q6_k iq4_xs."""

    def __init__(self, e: Emitter, name: str, size: int, ahead: int) -> None:
        super().__init__(e, size, ahead)
        self.name, self.layout = name, LAYOUTS[name]
        self.unroll = size <= 2
        self.sums_at = 20 * size  # -32 * sums of 16
        self.codes_at = 84 * size

    def run(self, panel: Value, x: Value, units: Value, scratch: Value) -> list[Value]:
        """Return the tokens' accumulators after all units of a panel."""
        e = self.e
        group = 340 * self.size
        steps, chunk = self.chunks()

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, self.layout.unit_bytes))
            a = e.add(x, e.mul(i, group))
            d, dmin, scales, minima = self.header(w)
            table = _Scales(e, scales, None if self.unroll else scratch)

            def step(j: Any, totals: list[Value]) -> list[Value]:
                for s, dots in chunk(w, a, j):
                    z = table[s]
                    totals = [e.fma(e.to_float(dots[t]), z, totals[t]) for t in self.tokens]
                return totals

            zeros = [e.splat(0.0, v16f32)] * self.size
            totals = e.loop(steps, zeros, step, unroll=self.unroll)
            sums = [self.scaled(a, t, totals[t], d, sums[t]) for t in self.tokens]
            if minima:
                sums = [self.minus_minima(a, t, minima, dmin, sums[t]) for t in self.tokens]
            return sums

        return e.loop(units, [e.splat(0.0, v16f32)] * self.size, unit)

    def chunks(self) -> tuple[int, Callable[[Value, Value, Any], list[tuple[Any, list[Value]]]]]:
        """Return (how many chunks make a super-block, what computes one)."""
        return {
            "q2_k": (4, self.chunk_q2),
            "q3_k": (4, self.chunk_q3),
            "q4_k": (4, self.chunk_q4),
            "q5_k": (4, self.chunk_q4),
            "q6_k": (4, self.chunk_q6),
            "iq4_xs": (8, self.chunk_iq4),
        }[self.name]

    def scaled(self, a: Value, t: int, total: Value, d: Value, acc: Value) -> Value:
        """Add a super-block's total to a token's accumulator."""
        e = self.e
        return e.fma(total, e.b.fmul(d, e.bcast(a, v16f32, 4 * t)), acc)

    def minus_minima(
        self, a: Value, t: int, minima: Sequence[Value], dmin: Value, acc: Value
    ) -> Value:
        """Subtract dmin * dx * sum of (minimum of a sub-block * sum of its activations)."""
        e, size = self.e, self.size
        total = self.zero
        for s, m in enumerate(minima):
            if self.name == "q2_k":  # 16 minima against -32 * sums of 16
                x = e.bcast(a, v16i32, self.sums_at + 4 * (s * size + t))
                total = e.b.add(total, e.b.mul(m, x))
            else:  # 4 pairs of int16 minima against int16 sums of 32
                x = e.bcast(a, v16i32, 4 * size + 4 * (s * size + t))
                total = e.dp_pairs(total, m, x)
        factor = e.splat(1 / 32 if self.name == "q2_k" else -1.0, v16f32)
        return self.scaled(a, t, e.to_float(total), e.b.fmul(dmin, factor), acc)

    def header(self, w: Value) -> tuple[Value, Value, list[Value], list[Value]]:
        """(d, dmin, scale of each sub-block, minima as `minima` wants them)."""
        e, b = self.e, self.e.b
        d = self.half(w, 0)
        if self.name == "q6_k":
            packed = [self.piece(w, 64 + 64 * i) for i in range(4)]
            return d, d, [self.signed_byte(packed[s // 4], s % 4) for s in range(16)], []
        if self.name == "q3_k":
            low, high, top = (self.piece(w, 64 + 64 * i) for i in range(3))
            four, two = e.k(0x0F0F0F0F), e.k(0x30303030)
            packed = [
                b.or_(b.and_(low, four), b.and_(e.shl(top, 4), two)),
                b.or_(b.and_(high, four), b.and_(e.shl(top, 2), two)),
                b.or_(b.and_(e.shr(low, 4), four), b.and_(top, two)),
                b.or_(b.and_(e.shr(high, 4), four), b.and_(e.shr(top, 2), two)),
            ]
            thirty_two = e.k(32)
            return d, d, [b.sub(e.byte(packed[s // 4], s % 4), thirty_two) for s in range(16)], []
        if self.name == "iq4_xs":
            high = b.zext(self.stream(w, v16i16, 32, 32), v16i32)
            low = self.piece(w, 64)
            scales = []
            for s in range(8):
                six = b.or_(
                    b.and_(e.shr(low, 4 * s), e.k(15)),
                    e.shl(b.and_(e.shr(high, 2 * s), e.k(3)), 4),
                )
                scales.append(b.sub(six, e.k(32)))
            return d, d, scales, []
        dmin = self.half(w, 32)
        if self.name == "q2_k":
            packed = [self.piece(w, 64 + 64 * i) for i in range(4)]
            scales = [b.and_(e.shr(packed[s // 4], 8 * (s % 4)), e.k(15)) for s in range(16)]
            minima = [b.and_(e.shr(packed[s // 4], 8 * (s % 4) + 4), e.k(15)) for s in range(16)]
            return d, dmin, scales, minima
        h = [self.piece(w, 64 + 64 * i) for i in range(3)]
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
        return d, dmin, [e.byte(low[s // 4], s % 4) for s in range(8)], pairs

    def signed_byte(self, v: Value, index: int) -> Value:
        """Signed byte `index` of every dword."""
        return self.e.sar(self.e.shl(v, 24 - 8 * index), 24)

    def starts(self, a: Value, s: Any, shift: int) -> list[Value]:
        """-32 * (sum of 16 codes of sub-block s), shifted down by `shift`, per token."""
        e, size = self.e, self.size
        at = e.add(e.c(self.sums_at), e.mul(s, 4 * size))
        return [e.sar(e.bcast(a, v16i32, e.add(at, 4 * t)), shift) for t in self.tokens]

    def chunk_q4(self, w: Value, a: Value, j: Any) -> list[tuple[Any, list[Value]]]:
        """q4_k, q5_k: 64 columns, low nibbles then high nibbles of 8 pieces."""
        e, b = self.e, self.e.b
        first = 256 if self.name == "q4_k" else 768
        at = e.add(w, e.mul(j, 512))
        loaded = [self.piece(at, first + 64 * g) for g in range(8)] if self.unroll else None
        out = []
        for p in (0, 1):
            s = 2 * j + p if isinstance(j, int) else e.add(e.mul(j, 2), p)

            def code(g: int, p: int = p, s: Any = s) -> Value:
                v = loaded[g] if loaded else e.load(at, v16i32, first + 64 * g, 64)
                v = b.and_(e.shr(v, 4 * p), e.k(0x0F0F0F0F))
                if self.name == "q5_k":
                    high = e.load(w, v16i32, 256 + 64 * g, 64)
                    v = b.or_(v, e.shl(b.and_(e.shr(high, s), e.k(0x01010101)), 4))
                return v

            pairs = [(lambda g=g, code=code: code(g), g) for g in range(8)]
            offset = e.add(e.c(self.codes_at), e.mul(s, 32 * self.size))
            out.append((s, self.dots(pairs, a, offset, [self.zero] * self.size)))
        return out

    def _quarter(
        self, a: Value, j: Any, shift: int | None, code: Callable[[int, int], Value]
    ) -> list[tuple[Any, list[Value]]]:
        """Formats with a scale per 16: chunk j = (h, p) holds columns 128h + 32q + 16p + 0..15."""
        e = self.e
        h, p = (j >> 1, j & 1) if isinstance(j, int) else (
            e.b.lshr(j, e.c(1)), e.b.and_(j, e.c(1)),
        )  # fmt: skip
        out = []
        for q in range(4):
            s = e.add(e.add(e.mul(h, 8), p), 2 * q) if not isinstance(j, int) else 8 * h + p + 2 * q
            sub = e.add(e.mul(h, 4), q) if not isinstance(j, int) else 4 * h + q
            offset = e.add(e.c(self.codes_at), e.mul(sub, 32 * self.size))
            offset = e.add(offset, e.mul(p, 16))
            start = [self.zero] * self.size if shift is None else self.starts(a, s, shift)
            pairs = [(lambda g=g, q=q: code(q, g), g) for g in range(4)]
            out.append((s, self.dots(pairs, a, offset, start)))
        return out

    def chunk_q6(self, w: Value, a: Value, j: Any) -> list[tuple[Any, list[Value]]]:
        """q6_k: 4 low and 2 high bits, by quarters."""
        e, b = self.e, self.e.b
        at = e.add(w, e.mul(j, 768))
        loaded = [self.piece(at, 320 + 64 * g) for g in range(12)] if self.unroll else None

        def read(n: int) -> Value:
            return loaded[n] if loaded else e.load(at, v16i32, 320 + 64 * n, 64)

        def code(q: int, g: int) -> Value:
            low = e.shr(read(4 + 4 * (q % 2) + g), 4 * (q // 2))
            high = read(g)
            moved = e.shl(high, 4 - 2 * q) if q < 2 else e.shr(high, 2 * q - 4)
            return b.or_(b.and_(low, e.k(0x0F0F0F0F)), b.and_(moved, e.k(0x30303030)))

        return self._quarter(a, j, 0, code)

    def chunk_q3(self, w: Value, a: Value, j: Any) -> list[tuple[Any, list[Value]]]:
        """q3_k: 2 low bits and a mask, by quarters."""
        e, b = self.e, self.e.b
        at = e.add(w, e.mul(j, 256))
        loaded = [self.piece(at, 768 + 64 * g) for g in range(4)] if self.unroll else None
        p = j & 1 if isinstance(j, int) else b.and_(j, e.c(1))
        h4 = 4 * (j >> 1) if isinstance(j, int) else e.mul(b.lshr(j, e.c(1)), 4)
        mask_at = e.add(w, e.mul(p, 256))

        def code(q: int, g: int) -> Value:
            v = loaded[g] if loaded else e.load(at, v16i32, 768 + 64 * g, 64)
            low = b.and_(e.shr(v, 2 * q), e.k(0x03030303))
            mask = e.load(mask_at, v16i32, 256 + 64 * g, 64)
            shift = h4 + q if isinstance(h4, int) else e.add(h4, q)
            return b.or_(low, e.shl(b.and_(e.shr(mask, shift), e.k(0x01010101)), 2))

        return self._quarter(a, j, 3, code)

    def chunk_q2(self, w: Value, a: Value, j: Any) -> list[tuple[Any, list[Value]]]:
        """q2_k: 2 bits, by quarters."""
        e, b = self.e, self.e.b
        at = e.add(w, e.mul(j, 256))
        loaded = [self.piece(at, 320 + 64 * g) for g in range(4)] if self.unroll else None

        def code(q: int, g: int) -> Value:
            v = loaded[g] if loaded else e.load(at, v16i32, 320 + 64 * g, 64)
            return b.and_(e.shr(v, 2 * q), e.k(0x03030303))

        return self._quarter(a, j, None, code)

    def chunk_iq4(self, w: Value, a: Value, j: Any) -> list[tuple[Any, list[Value]]]:
        """iq4_xs: 32 columns through the table of values."""
        e, b, size = self.e, self.e.b, self.size
        at = e.add(w, e.mul(j, 256))
        pairs: list[tuple[Callable[[], Value], int]] = []
        for g in range(4):
            loaded = self.piece(at, 128 + 64 * g)
            for top in (0, 1):
                nibble = b.and_(e.shr(loaded, 4 * top), e.k(0x0F0F0F0F))
                code = e.lookup16(nibble, IQ4_TABLE)
                pairs.append((lambda v=code: v, g + 4 * top))  # type: ignore[misc]
        start = []
        first = e.add(e.c(self.sums_at), e.mul(j, 8 * size))
        for t in self.tokens:
            both = b.add(
                e.bcast(a, v16i32, e.add(first, 4 * t)),
                e.bcast(a, v16i32, e.add(first, 4 * (size + t))),
            )
            start.append(e.wide_start(e.shl(both, 2)))
        offset = e.add(e.c(self.codes_at), e.mul(j, 32 * size))
        return [(j, self.dots(pairs, a, offset, start, wide=True))]


# --------------------------------------------------------------------------- float weights
class _Float(_Tile):
    """f32 f16 bf16: four columns a unit, four chains."""

    def __init__(self, e: Emitter, name: str, size: int, ahead: int) -> None:
        super().__init__(e, size, ahead)
        self.name, self.layout = name, LAYOUTS[name]

    def weights(self, w: Value, column: int) -> Value:
        e = self.e
        if self.name == "f32":
            return self.stream(w, v16f32, 64 * column, 64)
        raw = self.stream(w, v16i16, 32 * column, 32)
        return e.half_to_float(raw) if self.name == "f16" else e.bfloat_to_float(raw)

    def run(self, panel: Value, x: Value, units: Value, _scratch: Value) -> list[Value]:
        # four tokens at a time: 16 accumulators, more would spill
        out: list[Value] = []
        for first in range(0, self.size, 4):
            out += self.some(panel, x, units, range(first, min(first + 4, self.size)))
        return out

    def some(self, panel: Value, x: Value, units: Value, tokens: range) -> list[Value]:
        e, size = self.e, self.size

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, self.layout.unit_bytes))
            a = e.add(x, e.mul(i, 16 * size))
            out = list(sums)
            for column in range(4):
                v = self.weights(w, column)
                for k, t in enumerate(tokens):
                    acc = out[4 * k + column]
                    out[4 * k + column] = e.fma(v, e.bcast(a, v16f32, 4 * (column * size + t)), acc)
            return out

        sums = e.loop(units, [e.splat(0.0, v16f32)] * (4 * len(tokens)), unit)
        add = e.b.fadd
        return [
            add(add(sums[k], sums[k + 1]), add(sums[k + 2], sums[k + 3]))
            for k in range(0, len(sums), 4)
        ]
