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

from fastllm.kernels.codes import FORMATS, Block32, Block256, Codes, Floats, Header, Pairs, SubBlock
from fastllm.kernels.emit import Emitter, Value, v16f32, v16i32
from fastllm.kernels.stream import Stream


class _Product:
    """What all kinds share: activations of a tile of `size` tokens, dot products over pieces."""

    def __init__(self, e: Emitter, size: int) -> None:
        self.e, self.size, self.tokens = e, size, range(size)
        self.zero = e.splat(0, v16i32)
        # two independent integer chains hide latency at one token; integers, so the same sums
        self.chains = 2 if size == 1 else 1

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
    unrolled = size <= 2

    def generate(
        e: Emitter, panel: Value, x: Value, out: Value, units: Value, scratch: Value
    ) -> None:
        codes: Codes = FORMATS[name](Stream(e, ahead, in_registers=unrolled))
        product: Product32 | Product256 | ProductFloats
        if isinstance(codes, Block32):
            product = Product32(e, codes, size)
        elif isinstance(codes, Block256):
            product = Product256(e, codes, size, None if unrolled else scratch)
        else:
            assert isinstance(codes, Floats)
            product = ProductFloats(e, codes, size)
        sums = product.run(panel, x, units)
        for t in range(size):
            e.store(sums[t], out, 64 * t, 4)

    return generate


# --------------------------------------------------------------------------- a scale per 32 columns
class Product32(_Product):
    """Codes with a scale per 32 columns."""

    def __init__(self, e: Emitter, codes: Block32, size: int) -> None:
        super().__init__(e, size)
        self.codes = codes
        self.wide = codes.offset == 128

    def run(self, panel: Value, x: Value, units: Value) -> list[Value]:
        """Return the tokens' accumulators after all units of a panel."""
        e, codes = self.e, self.codes
        blocks = range(codes.blocks)
        group = 44 * self.size

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, codes.layout.unit_bytes))
            a = e.add(x, e.mul(i, group * len(blocks)))
            scales = [codes.scale(w, s) for s in blocks]
            minima = [codes.minimum(w, s) if codes.has_minimum else None for s in blocks]
            for s in blocks:
                sums = self.block(w, s, e.add(a, group * s), scales[s], minima[s], sums)
            return sums

        return e.loop(units, [e.splat(0.0, v16f32)] * self.size, unit)

    def block(
        self, w: Value, s: int, a: Value, d: Value, minimum: Value | None, sums: list[Value]
    ) -> list[Value]:
        """Add block s of the unit at w to the accumulators."""
        e = self.e
        start = []
        for t in self.tokens:
            minus = self.minus_offset(a, t)
            start.append(e.wide_start(minus) if self.wide else minus)
        dots = self.dots(self.codes.codes(w, s), a, 12 * self.size, start, self.wide)
        return [self.scaled(a, t, dots[t], d, minimum, sums[t]) for t in self.tokens]

    def minus_offset(self, a: Value, t: int) -> Value:
        """What the codes' offset adds to a dot product: -offset * sum, from -128 * sum."""
        if not self.codes.offset:
            return self.zero
        sums = self.e.bcast(a, v16i32, 8 * self.size + 4 * t)
        return self.e.sar(sums, 8 - self.codes.offset.bit_length())

    def scaled(
        self, a: Value, t: int, dot: Value, d: Value, minimum: Value | None, acc: Value
    ) -> Value:
        """Add a block's dot product to a token's accumulator."""
        e = self.e
        acc = e.fma(e.to_float(dot), e.b.fmul(d, e.bcast(a, v16f32, 4 * t)), acc)
        if minimum is not None:
            acc = e.fma(minimum, e.bcast(a, v16f32, 4 * self.size + 4 * t), acc)
        return acc


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


class Product256(_Product):
    """Codes with scales of sub-blocks within 256 columns.

    `scratch`: 1 KiB for decoded scales where chunks are looped over; None: they are unrolled.
    """

    def __init__(self, e: Emitter, codes: Block256, size: int, scratch: Value | None) -> None:
        super().__init__(e, size)
        self.codes, self.scratch = codes, scratch
        self.wide = codes.offset == 128
        self.sums_at = 20 * size  # -32 * sums of 16
        self.codes_at = 84 * size

    def run(self, panel: Value, x: Value, units: Value) -> list[Value]:
        """Return the tokens' accumulators after all units of a panel."""
        e, codes = self.e, self.codes
        group = 340 * self.size

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, codes.layout.unit_bytes))
            a = e.add(x, e.mul(i, group))
            header = codes.header(w)
            table = _Scales(e, header.scales, self.scratch)

            def step(j: Any, totals: list[Value]) -> list[Value]:
                for s, dots in [(sub.number, self.sub(a, sub)) for sub in codes.chunk(w, j)]:
                    z = table[s]
                    totals = [e.fma(e.to_float(dots[t]), z, totals[t]) for t in self.tokens]
                return totals

            zeros = [e.splat(0.0, v16f32)] * self.size
            totals = e.loop(codes.chunks, zeros, step, unroll=self.scratch is None)
            sums = [self.scaled(a, t, totals[t], header.d, sums[t]) for t in self.tokens]
            return [self.minus_minima(a, t, header, sums[t]) for t in self.tokens]

        return e.loop(units, [e.splat(0.0, v16f32)] * self.size, unit)

    def sub(self, a: Value, sub: SubBlock) -> list[Value]:
        """Dot products of a sub-block with every token of the tile."""
        e = self.e
        offset = e.add(e.c(self.codes_at), e.mul(sub.group, 32 * self.size))
        if sub.half is not None:
            offset = e.add(offset, e.mul(sub.half, 16))
        start = []
        for t in self.tokens:
            minus = self.minus_offset(a, sub.number, t)
            start.append(e.wide_start(minus) if self.wide else minus)
        return self.dots(sub.pairs, a, offset, start, self.wide)

    def minus_offset(self, a: Value, s: Any, t: int) -> Value:
        """What the codes' offset adds to the dot product of sub-block s: -offset * sum."""
        e, size = self.e, self.size
        if not self.codes.offset:
            return self.zero
        per_sub = self.codes.columns // 16  # sums of 16
        at = e.add(e.c(self.sums_at), e.mul(s, 4 * size * per_sub))
        sums = [e.bcast(a, v16i32, e.add(at, 4 * (t + size * n))) for n in range(per_sub)]
        total = sums[0] if per_sub == 1 else e.b.add(*sums)  # -32 * sum
        shift = self.codes.offset.bit_length() - 6
        return e.shl(total, shift) if shift > 0 else e.sar(total, -shift)

    def scaled(self, a: Value, t: int, total: Value, d: Value, acc: Value) -> Value:
        """Add a total times d * dx."""
        e = self.e
        return e.fma(total, e.b.fmul(d, e.bcast(a, v16f32, 4 * t)), acc)

    def minus_minima(self, a: Value, t: int, header: Header, acc: Value) -> Value:
        """Subtract dmin * dx * sum of (minimum of a sub-block * sum of its activations)."""
        if header.dmin is None:
            return acc
        e, size = self.e, self.size
        of_16 = self.codes.columns == 16
        total = self.zero
        for s, m in enumerate(header.minima):
            if of_16:  # 16 minima against -32 * sums of 16
                x = e.bcast(a, v16i32, self.sums_at + 4 * (s * size + t))
                total = e.b.add(total, e.b.mul(m, x))
            else:  # 4 pairs of int16 minima against int16 sums of 32
                x = e.bcast(a, v16i32, 4 * size + 4 * (s * size + t))
                total = e.dp_pairs(total, m, x)
        factor = e.splat(1 / 32 if of_16 else -1.0, v16f32)
        return self.scaled(a, t, e.to_float(total), e.b.fmul(header.dmin, factor), acc)


# --------------------------------------------------------------------------- float weights
class ProductFloats(_Product):
    """Weights that are numbers: four columns a unit, four chains."""

    def __init__(self, e: Emitter, codes: Floats, size: int) -> None:
        super().__init__(e, size)
        self.codes = codes

    def run(self, panel: Value, x: Value, units: Value) -> list[Value]:
        """Return the tokens' accumulators after all units of a panel."""
        # four tokens at a time: 16 accumulators, more would spill
        out: list[Value] = []
        for first in range(0, self.size, 4):
            out += self.some(panel, x, units, range(first, min(first + 4, self.size)))
        return out

    def some(self, panel: Value, x: Value, units: Value, tokens: range) -> list[Value]:
        """Return the accumulators of some of the tokens."""
        e, size, codes = self.e, self.size, self.codes

        def unit(i: Value, sums: list[Value]) -> list[Value]:
            w = e.add(panel, e.mul(i, codes.layout.unit_bytes))
            a = e.add(x, e.mul(i, 16 * size))
            out = list(sums)
            for column in range(4):
                v = codes.weights(w, column)
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
