"""Attention over the pages of the KV cache, the same arithmetic for one query and for a prompt.

Where keys and values lie is the matter of ``kernels.kv_page``. Queries arrive scaled by
log2(e) * scale, so the softmax is exp2.

Pages are walked in chunks of 8 (512 positions). A chunk starts afresh with (maximum, sum, output)
and does its pages in order; chunks are merged in order. A page or chunk that a query does not see
(causality, sliding window) changes none of its bits, so it does not matter which queries share a
tile, how a prompt was cut, or whether chunks ran on several threads.

State of a query row: 16 bytes (maximum, sum, last rescale, unused) and its output float32[D].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from fastllm.kernels import kv_page
from fastllm.kernels.context import word
from fastllm.kernels.emit import Emitter, Value, f32, i32, kernel, v16f32, v16i32
from fastllm.kernels.functions import exp2, exp2_scalar, tanh
from fastllm.kernels.interpreter_codes import STATE_BYTES
from fastllm.kernels.jit import compiled
from fastllm.kernels.kv_page import F16, F32, KV_TYPES, LANES, PAGE, page_bytes, widen
from fastllm.kernels.memory import (
    F,
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
from fastllm.kernels.target import VECTORS
from fastllm.kernels.words import Context

EMPTY = -1e30  # a maximum below every score; finite, so that differences are never NaN
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
        for first in range(0, PAGE // LANES, TOGETHER):
            groups = range(first, first + TOGETHER)

            def step(d: Value, sums: list[Value], groups: range = groups) -> list[Value]:
                k = [key(j, d) for j in groups]
                new = []
                for r in range(count):
                    x = e.bcast(e.add(e.add(q, e.mul(ldq, r)), e.mul(d, 4)), v16f32)
                    new += [e.fma(k[j], x, sums[r * TOGETHER + j]) for j in range(TOGETHER)]
                return new

            sums = e.loop(dim, [e.splat(0.0, v16f32)] * (count * TOGETHER), step)
            for r in range(count):
                for j in range(TOGETHER):
                    e.store(sums[r * TOGETHER + j], out, 256 * r + 64 * (first + j), 64)

    _by_rows_and_type(e, rows, kv_type, case)


@kernel(N, I, I, I, I, F)
def _softmax_row(e: Emitter, s: Value, low: Value, high: Value, state: Value, cap: Value) -> None:
    """Scores of a page to weights, in place; positions outside [low, high) weigh exactly 0."""
    b = e.b
    lanes = [ir.Constant(v16i32, [16 * j + i for i in range(16)]) for j in range(4)]
    low16, high16 = (e.splat(b.trunc(v, i32), v16i32) for v in (low, high))
    scores = [e.load(s, v16f32, 64 * j, 64) for j in range(4)]
    capped = b.fcmp_ordered(">", cap, ir.Constant(f32, 0.0))
    with b.if_then(capped):
        wide = e.splat(cap, v16f32)
        inverse = e.splat(b.fdiv(ir.Constant(f32, 1.0), cap), v16f32)
        for j in range(4):
            e.store(b.fmul(wide, tanh(e, b.fmul(scores[j], inverse))), s, 64 * j, 64)
    empty = e.splat(EMPTY, v16f32)
    masked, visible = [], []
    for j in range(4):
        seen = b.and_(b.icmp_signed(">=", lanes[j], low16), b.icmp_signed("<", lanes[j], high16))
        visible.append(seen)
        masked.append(b.select(seen, e.load(s, v16f32, 64 * j, 64), empty))
    most = e.fmax(e.fmax(masked[0], masked[1]), e.fmax(masked[2], masked[3]))
    old = e.load(state, f32)
    new = e.fmax(e.tree(most, e.fmax), old)
    shift = e.splat(new, v16f32)
    zero = e.splat(0.0, v16f32)
    weights = [b.select(visible[j], exp2(e, b.fsub(masked[j], shift)), zero) for j in range(4)]
    rescale = exp2(e, b.fsub(e.splat(old, v16f32), shift))
    rescale = b.extract_element(rescale, ir.Constant(i32, 0))
    total = b.fadd(b.fadd(weights[0], weights[1]), b.fadd(weights[2], weights[3]))
    sums = b.fadd(b.fmul(e.load(state, f32, 4), rescale), e.hsum(total))
    e.store(new, state)
    e.store(sums, state, 4)
    e.store(rescale, state, 8)
    for j in range(4):
        e.store(weights[j], s, 64 * j, 64)


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
            start = []
            for r in range(count):
                rescale = e.bcast(state, v16f32, STATE_BYTES * r + 8)
                start += [
                    e.b.fmul(e.load(outs[r], v16f32, 64 * i, 64), rescale) for i in range(vectors)
                ]

            def step(i: Value, sums: list[Value]) -> list[Value]:
                slot = e.b.add(first, i)
                v = [value(slot, j) for j in range(vectors)]
                weight = e.add(p, e.mul(slot, 4))
                new = []
                for r in range(count):
                    x = e.bcast(weight, v16f32, 256 * r)
                    new += [e.fma(v[j], x, sums[r * vectors + j]) for j in range(vectors)]
                return new

            sums = e.loop(e.b.sub(last, first), start, step)
            for r in range(count):
                for j in range(vectors):
                    e.store(sums[r * vectors + j], outs[r], 64 * j, 64)

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
        elif kv_type == F16 and j + 1 < last_page:
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
                for k in range(n):
                    own = position + (r + k) // group - begin + 1
                    least = own - window if window > 0 else 0
                    _softmax_row(scratch + 256 * k, least, own, state + STATE_BYTES * (r + k), cap)
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
