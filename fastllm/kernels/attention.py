"""Attention over the pages of the KV cache, the same arithmetic for one query and for a prompt.

Where keys and values lie is the matter of ``kernels.kv_page``. Queries arrive scaled by
log2(e) * scale, so the softmax is exp2.

Pages are walked in chunks of 8 (512 positions). A chunk starts afresh with (maximum, sum, output)
and does its pages in order; chunks are merged in order. A page or chunk that a query does not see
(causality, sliding window) changes none of its bits, so it does not matter which queries share a
tile, how a prompt was cut, or whether chunks ran on several threads.

State of a query row: 16 bytes (maximum, sum, last rescale, unit of a page's weights if they are
codes) and its output float32[D].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from fastllm.kernels import kv_page
from fastllm.kernels.context import word
from fastllm.kernels.emit import Emitter, Value, i1, i32, kernel, v16f32, v16i32
from fastllm.kernels.functions import exp2, exp2_rough, exp2_scalar, tanh16
from fastllm.kernels.interpreter_codes import STATE_BYTES
from fastllm.kernels.jit import compiled
from fastllm.kernels.kv_page import F16, F32, I16, KV_TYPES, LANES, PAGE, page_bytes, widen
from fastllm.kernels.memory import (
    I,
    N,
    fma16,
    load16,
    load_f32,
    load_i32,
    mul16,
    splat16,
    store16,
    store_f32,
    zero16,
)
from fastllm.kernels.quantize import TINY
from fastllm.kernels.target import VECTORS
from fastllm.kernels.words import Context

EMPTY = -1e30  # a maximum below every score; finite, so that differences are never NaN
UNSEEN = -3e38  # the score of a position that is not seen: below EMPTY, so it weighs 0 there, too
LEAST = -126.0  # 2**x below this is 0
TOTAL = 32700.0  # sum of a page's weights as codes; with the rounding of 64, still one code
ROWS = 4  # query rows of a tile: 4 x 4 accumulators and 4 vectors of K fit 32 registers
# avx512 has registers for four lane groups at a time, the others for one
TOGETHER = 4 if VECTORS == "avx512" else 1


def _by_rows_and_type(
    e: Emitter, rows: Value, kv_type: Value, case: Callable[[int, int], None]
) -> None:
    """Emit ``case(rows, type)`` for each number of rows and type of page, and the switch."""
    cases = {
        8 * stored + count: partial(case, count, stored)
        for stored in KV_TYPES.values()
        for count in range(1, ROWS + 1)
    }
    e.switch(e.b.add(e.mul(kv_type, 8), rows), cases)


@kernel(N, I, I, I, I, I, I)
def _score(
    e: Emitter, rows: Value, kv_type: Value, q: Value, page: Value, dim: Value, out: Value
) -> None:
    """Write the scores of up to `ROWS` queries: out[row][64] = q . K."""

    def case(count: int, stored: int) -> None:
        key, ldq = kv_page.keys(e, stored, page, dim), e.mul(dim, 4)
        rows_at = [e.add(q, e.mul(ldq, r)) for r in range(count)]
        codes = stored == I16
        type_ = v16i32 if codes else v16f32
        multiply = e.dp_pairs_of if codes else e.fma
        steps = e.b.lshr(dim, e.c(1)) if codes else dim
        for first in range(0, PAGE // LANES, TOGETHER):
            groups = range(first, first + TOGETHER)

            def step(d: Value, sums: list[Value], groups: range = groups) -> list[Value]:
                k, new = [key(j, d) for j in groups], []
                for r in range(count):
                    x = e.bcast(e.add(rows_at[r], e.mul(d, 4)), type_)
                    new += [multiply(k[j], x, sums[r * TOGETHER + j]) for j in range(TOGETHER)]
                return new

            sums = e.loop(steps, [e.splat(0, type_)] * (count * TOGETHER), step)
            for r in range(count):
                for j in range(TOGETHER):
                    s = sums[r * TOGETHER + j]
                    if codes:
                        unit = e.bcast(e.add(rows_at[r], e.mul(dim, 2)), v16f32)
                        units = kv_page.key_units(e, page, dim, first + j)
                        s = e.b.fmul(e.to_float(s), e.b.fmul(units, unit))
                    e.store(s, out, 256 * r + 64 * (first + j), 64)

    _by_rows_and_type(e, rows, kv_type, case)


@compiled
def _cap(s: int, rows: int, cap: float) -> None:
    """Scores become cap * tanh(score / cap)."""
    wide, inverse = splat16(cap), splat16(1.0 / cap)
    for at in range(s, s + 256 * rows, 64):
        store16(at, mul16(wide, tanh16(mul16(load16(at), inverse))))


@kernel(N, I, I, I)
def _hide(e: Emitter, s: Value, low: Value, high: Value) -> None:
    """Take the positions of a page outside [low, high) out of a row of scores."""
    b = e.b
    low16, high16 = (e.splat(b.trunc(v, i32), v16i32) for v in (low, high))
    for j in range(PAGE // LANES):
        lanes = ir.Constant(v16i32, [16 * j + i for i in range(16)])
        seen = b.and_(b.icmp_signed(">=", lanes, low16), b.icmp_signed("<", lanes, high16))
        score = b.select(seen, e.load(s, v16f32, 64 * j, 64), e.splat(UNSEEN, v16f32))
        e.store(score, s, 64 * j, 64)


@kernel(N, I, I, I, I, I, I)
def _softmax(
    e: Emitter, rows: Value, kv_type: Value, page: Value, dim: Value, s: Value, state: Value
) -> None:
    """Scores of a page to weights, in place, for up to `ROWS` rows, and their states.

    Weights for values in codes are codes, too: of weight times the value's unit, with a sum of at
    most `TOTAL`.
    """
    b = e.b
    zero, least = e.splat(0.0, v16f32), e.splat(TINY, v16f32)

    def lane(v: Value, index: int) -> Value:
        return e.shuf(v, None, [index] * 16)

    def sums_of(rows: list[list[Value]]) -> Value:
        sums = [b.fadd(b.fadd(w[0], w[1]), b.fadd(w[2], w[3])) for w in rows]
        return e.trees(sums + [zero] * (ROWS - len(rows)), b.fadd)

    def case(count: int, stored: int) -> None:
        codes = stored == I16
        scores = [[e.load(s, v16f32, 256 * r + 64 * j, 64) for j in range(4)] for r in range(count)]
        # row r's state, and all that follows from it, is in lanes 4 r to 4 r + 3
        packed = e.load(state, v16f32)
        old, sums = (e.shuf(packed, None, [i // 4 * 4 + f for i in range(16)]) for f in (0, 1))
        most = [e.fmax(e.fmax(x[0], x[1]), e.fmax(x[2], x[3])) for x in scores]
        new = e.fmax(e.trees(most + [zero] * (ROWS - count), e.fmax), old)
        rescale = exp2(e, b.fsub(old, new))
        weights: list[list[Value]] = [[] for _ in range(count)]
        scaled: list[list[Value]] = [[] for _ in range(count)]
        units = [kv_page.value_units(e, page, dim, j) for j in range(4)] if codes else []
        for r in range(count):
            for j in range(4):
                x = b.fsub(scores[r][j], lane(new, 4 * r))
                weighs = b.fcmp_unordered(">", x, e.splat(LEAST, v16f32))  # NaN does
                weight = exp2_rough(e, x) if codes else exp2(e, x)
                weights[r].append(b.select(weighs, weight, zero))
                if codes:  # what nobody sees has any unit
                    scaled[r].append(b.select(weighs, b.fmul(weight, units[j]), zero))
        sums = b.fadd(b.fmul(sums, rescale), sums_of(weights))
        unit = zero
        if codes:
            total = sums_of(scaled)
            total = b.select(b.fcmp_ordered("<", total, least), least, total)
            unit = b.fmul(total, e.splat(1 / TOTAL, v16f32))
            inverse = b.fdiv(e.splat(TOTAL, v16f32), total)
        for r in range(count):
            for j in range(4):
                if codes:
                    code = kv_page.rounded(e, scaled[r][j], lane(inverse, 4 * r))
                    e.store(code, s, 256 * r + 32 * j, 32)
                else:
                    e.store(weights[r][j], s, 256 * r + 64 * j, 64)
        for f, field in enumerate((new, sums, rescale, unit)):
            place = ir.Constant(ir.VectorType(i1, 16), [int(i % 4 == f) for i in range(16)])
            packed = b.select(place, field, packed)
        e.store(packed, state)

    _by_rows_and_type(e, rows, kv_type, case)


def _weigh_columns(vectors: int) -> Any:
    """Return the kernel of ``o = o * rescale + p . V`` over `vectors` * 16 columns.

    Its arguments: rows, type and address of the page, dim, first column, p, o, state, and the
    first and last position that any row sees.
    """

    def generate(
        e: Emitter,
        rows: Value,
        kv_type: Value,
        page: Value,
        dim: Value,
        column: Value,
        p: Value,
        o: Value,
        state: Value,
        first: Value,
        last: Value,
    ) -> None:
        def case(count: int, stored: int) -> None:
            value, ldo = kv_page.values(e, stored, page, dim, column), e.mul(dim, 4)
            outs = [e.add(e.add(o, e.mul(ldo, r)), e.mul(column, 4)) for r in range(count)]
            codes = stored == I16
            type_ = v16i32 if codes else v16f32
            multiply = e.dp_pairs_of if codes else e.fma

            def scaled(r: int, i: int) -> Value:
                rescale = e.bcast(state, v16f32, STATE_BYTES * r + 8)
                return e.b.fmul(e.load(outs[r], v16f32, 64 * i, 64), rescale)

            pairs = [(r, i) for r in range(count) for i in range(vectors)]
            start = [e.splat(0, type_) if codes else scaled(r, i) for r, i in pairs]
            begin, end = first, last
            if codes:
                begin, end = e.b.lshr(first, e.c(1)), e.b.lshr(e.add(last, 1), e.c(1))

            def step(i: Value, sums: list[Value]) -> list[Value]:
                slot = e.b.add(begin, i)
                v, new = [value(slot, j) for j in range(vectors)], []
                weight = e.add(p, e.mul(slot, 4))
                for r in range(count):
                    x = e.bcast(weight, type_, 256 * r)
                    new += [multiply(v[j], x, sums[r * vectors + j]) for j in range(vectors)]
                return new

            sums = e.loop(e.b.sub(end, begin), start, step)
            for (r, i), total in zip(pairs, sums, strict=True):
                if codes:
                    unit = e.bcast(state, v16f32, STATE_BYTES * r + 12)
                    total = e.fma(e.to_float(total), unit, scaled(r, i))
                e.store(total, outs[r], 64 * i, 64)

        _by_rows_and_type(e, rows, kv_type, case)

    return kernel(N, I, I, I, I, I, I, I, I, I, I)(generate)


@kernel(N, I)
def _prefetch(e: Emitter, a: Value) -> None:
    """Ask for 1 KiB at an address, into the second-level cache."""
    for line in range(16):
        e.prefetch(a, 64 * line)


_weigh_together, _weigh_16 = _weigh_columns(TOGETHER), _weigh_columns(1)


@compiled
def _weigh(
    rows: int, kv_type: int, page: int, dim: int, p: int, o: int, state: int, first: int, last: int
) -> None:
    """Add the weighted values of a page's positions [first, last) to the outputs."""
    column = 0
    while column + 16 * TOGETHER <= dim:
        _weigh_together(rows, kv_type, page, dim, column, p, o, state, first, last)
        column += 16 * TOGETHER
    while column < dim:
        _weigh_16(rows, kv_type, page, dim, column, p, o, state, first, last)
        column += 16


@compiled
def _clear(rows: int, dim: int, o: int, state: int) -> None:
    """Begin a chunk: nothing seen, nothing summed."""
    for r in range(rows):
        store_f32(state + STATE_BYTES * r, EMPTY)
        store_f32(state + STATE_BYTES * r + 4, 0.0)
    for i in range(rows * dim // 16):
        store16(o + 64 * i, zero16())


@compiled
def attend_chunk(
    q: int,
    rows: int,
    group: int,
    position: int,
    window: int,
    cap: float,
    dim: int,
    pages: int,
    page_stride: int,
    kv_type: int,
    table: int,
    first_page: int,
    last_page: int,
    o: int,
    state: int,
    scratch: int,
) -> None:
    """One chunk of pages for `rows` query rows: fresh state, pages in order.

    Row r is head r % group of the token at `position` + r // group; it sees positions up to its
    own, and at most `window` of them if window > 0. `pages` is the address of this layer and
    head in block 0, blocks are `page_stride` bytes apart, `table` int32 block ids, `kv_type` one of
    `KV_TYPES`. `scratch`: 1 KiB of scores, then a widened page.
    """
    _clear(rows, dim, o, state)
    wide_page = scratch + 1024
    for j in range(first_page, last_page):
        begin = j * PAGE
        last_position = position + (rows - 1) // group
        if begin > last_position:
            break
        if window > 0 and begin + PAGE <= position - window + 1:
            continue
        page, stored = pages + load_i32(table + 4 * j) * page_stride, kv_type
        if kv_type == F16 and rows > 2 * ROWS:
            widen(page, dim, wide_page)
            page, stored = wide_page, F32
        elif rows <= 2 * ROWS and j + 1 < last_page:
            # a decode step meets every page cold; the next page lies somewhere else
            following = pages + load_i32(table + 4 * (j + 1)) * page_stride
            for i in range(page_bytes(dim, kv_type) // 1024):
                _prefetch(following + 1024 * i)
        r = 0
        while r < rows:
            n = min(ROWS, rows - r)
            top = position + (r + n - 1) // group - begin + 1
            low = 0
            if window > 0:
                low = max(0, position + r // group - window + 1 - begin)
            if top > 0 and low < PAGE:
                _score(n, stored, q + 4 * dim * r, page, dim, scratch)
                if cap > 0.0:
                    _cap(scratch, n, cap)
                for k in range(n):
                    own = position + (r + k) // group - begin + 1
                    least = own - window if window > 0 else 0
                    if own < PAGE or least > 0:
                        _hide(scratch + 256 * k, least, own)
                _softmax(n, stored, page, dim, scratch, state + STATE_BYTES * r)
                _weigh(
                    n, stored, page, dim, scratch, o + 4 * dim * r, state + STATE_BYTES * r,
                    low, min(top, PAGE),
                )  # fmt: skip
            r += n


@compiled
def merge_chunk(rows: int, dim: int, o: int, state: int, into: int, into_state: int) -> None:
    """Fold a chunk's result into the running one; an empty side changes nothing."""
    for r in range(rows):
        a, b = into_state + STATE_BYTES * r, state + STATE_BYTES * r
        old, new = load_f32(a), load_f32(b)
        most = max(old, new)
        keep, take = exp2_scalar(old - most), exp2_scalar(new - most)
        store_f32(a, most)
        store_f32(a + 4, load_f32(a + 4) * keep + load_f32(b + 4) * take)
        for i in range(dim // 16):
            at = 4 * dim * r + 64 * i
            kept = mul16(load16(into + at), splat16(keep))
            store16(into + at, fma16(load16(o + at), splat16(take), kept))


@compiled
def finish_row(dim: int, head_dim: int, o: int, state: int, out: int) -> None:
    """Divide one row by its sum; head_dim floats to `out`."""
    inverse = splat16(1.0 / load_f32(state + 4))
    if head_dim == dim:
        for i in range(dim // 16):
            store16(out + 64 * i, mul16(load16(o + 64 * i), inverse))
    else:
        scale = 1.0 / load_f32(state + 4)
        for i in range(head_dim):
            store_f32(out + 4 * i, load_f32(o + 4 * i) * scale)


@compiled
def partial_of(c: int, token: int, head: int, heads: int, chunk: int, dim: int) -> Any:
    """Address of the output of one (token, head, chunk); its state lies behind it."""
    index = (token * heads + head) * word(c, Context.MAX_CHUNKS) + chunk
    return word(c, Context.PARTIALS) + index * (4 * dim + 64)
