"""Attention over the paged KV cache, the same arithmetic for one query and for a prompt.

A page holds 64 positions of one kv head, in half precision (or float32, for exact comparisons)::

    K [4][D][16]   position = lane, so scores need no sum across lanes; one broadcast of q per d
    V [64][D]

with D = head_dim padded to 16. Queries arrive scaled by log2(e) * scale, so the softmax is exp2.

Pages are walked in chunks of 8 (512 positions). A chunk starts afresh with (maximum, sum, output)
and does its pages in order; chunks are merged in order. A page or chunk that a query does not see
(causality, sliding window) changes none of its bits, so it does not matter which queries share a
tile, how a prompt was cut, or whether chunks ran on several threads.

State of a query row: 16 bytes (maximum, sum, last rescale, unused) and its output float32[D].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastllm.kernels.context import word
from fastllm.kernels.emit import Emitter, Value, f32, i32, kernel, v16f32, v16i16, v16i32
from fastllm.kernels.functions import exp2, exp2_scalar, tanh
from fastllm.kernels.interpreter_codes import PAGE, STATE_BYTES
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import (
    F,
    I,
    N,
    fma16,
    load16,
    load16_half,
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


def _scores(rows: int, together: int, half: bool) -> Callable[..., None]:
    """(q, q row stride, k, D, out): out[row][64] = q . K; `together` lane groups at a time."""
    width = 32 if half else 64

    def generate(e: Emitter, q: Value, ldq: Value, k: Value, dim: Value, out: Value) -> None:
        group = e.mul(dim, width)
        for first in range(0, 4, together):
            bases = [e.add(k, e.mul(group, first + j)) for j in range(together)]

            def step(d: Value, sums: list[Value], bases: list[Value] = bases) -> list[Value]:
                keys = []
                for base in bases:
                    at = e.add(base, e.mul(d, width))
                    if half:
                        keys.append(e.half_to_float(e.load(at, v16i16, 0, 32)))
                    else:
                        keys.append(e.load(at, v16f32, 0, 64))
                new = []
                for r in range(rows):
                    x = e.bcast(e.add(e.add(q, e.mul(ldq, r)), e.mul(d, 4)), v16f32)
                    new += [e.fma(keys[j], x, sums[r * together + j]) for j in range(together)]
                return new

            zero = [e.splat(0.0, v16f32)] * (rows * together)
            sums = e.loop(dim, zero, step)
            for r in range(rows):
                for j in range(together):
                    e.store(sums[r * together + j], out, 256 * r + 64 * (first + j), 64)

    return generate


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


def _values(rows: int, vectors: int, half: bool) -> Callable[..., None]:
    """(p, v, v row stride, o, o row stride, state, first, last position): o = o * rescale + p . V.

    `vectors` groups of 16 dimensions at a time, from the addresses given.
    """
    width = 32 if half else 64

    def generate(
        e: Emitter,
        p: Value,
        v: Value,
        ldv: Value,
        o: Value,
        ldo: Value,
        state: Value,
        first: Value,
        last: Value,
    ) -> None:
        start = []
        for r in range(rows):
            rescale = e.bcast(state, v16f32, STATE_BYTES * r + 8)
            at = e.add(o, e.mul(ldo, r))
            start += [e.b.fmul(e.load(at, v16f32, 64 * i, 64), rescale) for i in range(vectors)]

        def step(i: Value, sums: list[Value]) -> list[Value]:
            slot = e.b.add(first, i)
            at = e.add(v, e.b.mul(slot, ldv))
            if half:
                values = [
                    e.half_to_float(e.load(at, v16i16, width * j, 32)) for j in range(vectors)
                ]
            else:
                values = [e.load(at, v16f32, width * j, 64) for j in range(vectors)]
            weight = e.add(p, e.mul(slot, 4))
            new = []
            for r in range(rows):
                x = e.bcast(weight, v16f32, 256 * r)
                new += [e.fma(values[j], x, sums[r * vectors + j]) for j in range(vectors)]
            return new

        sums = e.loop(e.b.sub(last, first), start, step)
        for r in range(rows):
            at = e.add(o, e.mul(ldo, r))
            for j in range(vectors):
                e.store(sums[r * vectors + j], at, 64 * j, 64)

    return generate


@kernel(N, I)
def _prefetch(e: Emitter, a: Value) -> None:
    """Ask for 1 KiB at an address, into the second-level cache."""
    for line in range(16):
        e.prefetch(a, 64 * line)


# avx512 has registers for four lane groups at a time, the others for one
_TOGETHER = _PER_PASS = 4 if VECTORS == "avx512" else 1
_score_half_1, _score_half_2, _score_half_3, _score_half_4 = (
    kernel(N, I, I, I, I, I)(_scores(r, _TOGETHER, True)) for r in range(1, ROWS + 1)
)
_score_1, _score_2, _score_3, _score_4 = (
    kernel(N, I, I, I, I, I)(_scores(r, _TOGETHER, False)) for r in range(1, ROWS + 1)
)


def _value_kernels(vectors: int, half: bool) -> list[Any]:
    return [
        kernel(N, I, I, I, I, I, I, I, I)(_values(r, vectors, half)) for r in range(1, ROWS + 1)
    ]


_value_half_n_1, _value_half_n_2, _value_half_n_3, _value_half_n_4 = _value_kernels(_PER_PASS, True)
_value_half_1_1, _value_half_1_2, _value_half_1_3, _value_half_1_4 = _value_kernels(1, True)
_value_n_1, _value_n_2, _value_n_3, _value_n_4 = _value_kernels(_PER_PASS, False)
_value_1_1, _value_1_2, _value_1_3, _value_1_4 = _value_kernels(1, False)


@compiled
def _score(rows: int, half: int, q: int, ldq: int, k: int, dim: int, out: int) -> None:
    """Scores of `rows` queries and a page."""
    if half != 0:
        if rows == 4:
            _score_half_4(q, ldq, k, dim, out)
        elif rows == 3:
            _score_half_3(q, ldq, k, dim, out)
        elif rows == 2:
            _score_half_2(q, ldq, k, dim, out)
        else:
            _score_half_1(q, ldq, k, dim, out)
    elif rows == 4:
        _score_4(q, ldq, k, dim, out)
    elif rows == 3:
        _score_3(q, ldq, k, dim, out)
    elif rows == 2:
        _score_2(q, ldq, k, dim, out)
    else:
        _score_1(q, ldq, k, dim, out)


@compiled
def _weigh(
    rows: int, half: int, p: int, v: int, o: int, dim: int, state: int, first: int, last: int
) -> None:
    """Add the weighted values of a page's positions [first, last) to the outputs."""
    ldo = 4 * dim
    ldv = 2 * dim if half != 0 else 4 * dim
    step = ldv // dim * 16
    c = 0
    while 16 * (c + _PER_PASS) <= dim:
        at, out = v + c * step, o + 64 * c
        if half != 0:
            if rows == 4:
                _value_half_n_4(p, at, ldv, out, ldo, state, first, last)
            elif rows == 3:
                _value_half_n_3(p, at, ldv, out, ldo, state, first, last)
            elif rows == 2:
                _value_half_n_2(p, at, ldv, out, ldo, state, first, last)
            else:
                _value_half_n_1(p, at, ldv, out, ldo, state, first, last)
        elif rows == 4:
            _value_n_4(p, at, ldv, out, ldo, state, first, last)
        elif rows == 3:
            _value_n_3(p, at, ldv, out, ldo, state, first, last)
        elif rows == 2:
            _value_n_2(p, at, ldv, out, ldo, state, first, last)
        else:
            _value_n_1(p, at, ldv, out, ldo, state, first, last)
        c += _PER_PASS
    while 16 * c < dim:
        at, out = v + c * step, o + 64 * c
        if half != 0:
            if rows == 4:
                _value_half_1_4(p, at, ldv, out, ldo, state, first, last)
            elif rows == 3:
                _value_half_1_3(p, at, ldv, out, ldo, state, first, last)
            elif rows == 2:
                _value_half_1_2(p, at, ldv, out, ldo, state, first, last)
            else:
                _value_half_1_1(p, at, ldv, out, ldo, state, first, last)
        elif rows == 4:
            _value_1_4(p, at, ldv, out, ldo, state, first, last)
        elif rows == 3:
            _value_1_3(p, at, ldv, out, ldo, state, first, last)
        elif rows == 2:
            _value_1_2(p, at, ldv, out, ldo, state, first, last)
        else:
            _value_1_1(p, at, ldv, out, ldo, state, first, last)
        c += 1


@compiled
def _widen(page: int, dim: int, out: int) -> None:
    """A page to float32, in the same order: exact, paid once for many query rows."""
    for i in range(2 * PAGE * dim // 16):
        store16(out + 64 * i, load16_half(page + 32 * i))


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
    wide: int,
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
    head in block 0, blocks are `page_stride` bytes apart, `table` int32 block ids. `wide`: 1
    for float32 pages. `scratch`: 1 KiB of scores, then a widened page.
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
        page = pages + load_i32(table + 4 * j) * page_stride
        half = 1
        if wide != 0:
            half = 0
        elif rows > 2 * ROWS:
            _widen(page, dim, wide_page)
            page = wide_page
            half = 0
        elif j + 1 < last_page:
            # a decode step meets every page cold; the next page lies somewhere else
            following = pages + load_i32(table + 4 * (j + 1)) * page_stride
            for i in range(dim // 4):
                _prefetch(following + 1024 * i)
        v = page + (2 if half != 0 else 4) * PAGE * dim
        r = 0
        while r < rows:
            n = min(ROWS, rows - r)
            top = position + (r + n - 1) // group - begin + 1
            low = 0
            if window > 0:
                low = max(0, position + r // group - window + 1 - begin)
            if top > 0 and low < PAGE:
                _score(n, half, q + 4 * dim * r, 4 * dim, page, dim, scratch)
                for k in range(n):
                    own = position + (r + k) // group - begin + 1
                    least = own - window if window > 0 else 0
                    _softmax_row(scratch + 256 * k, least, own, state + STATE_BYTES * (r + k), cap)
                _weigh(
                    n, half, scratch, v, o + 4 * dim * r, dim, state + STATE_BYTES * r,
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
