"""The native step: every thread runs the same table of operations, meeting at barriers.

One call runs a whole batch through all layers. An op splits its work by thread number: matrices by
panels, row-wise ops by tokens (or blocks of columns), attention by (sequence, kv head, tile or
chunk). No op reduces across threads, so results do not depend on their number.

Scratch of a thread (SCRATCH_STRIDE bytes, 64-byte aligned)::

    ROW     one padded row of float32 (norm output, activations)
    MATMUL  scratch of a matrix kernel
    HEAD    two heads, normed or rotated
    ATTEND  scores, a widened page, outputs and states of a tile of queries
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastllm.kernels.attention import attend_chunk, finish_row, merge_chunk
from fastllm.kernels.emit import Emitter, Value, i32, i64, kernel
from fastllm.kernels.functions import gelu16, gelu_tanh16, relu16, silu16, tanh16
from fastllm.kernels.interpreter_codes import (
    CHUNK_PAGES,
    MATMUL_ARGS,
    PAGE,
    RUN,
    STATE_BYTES,
    STOP,
    TILE_ROWS,
    WORK,
)
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import (
    I,
    add16,
    float_of_bits,
    load16,
    load_i32,
    load_i64,
    mul16,
    splat16,
    store16,
    store16_half,
    store16_half_strided,
    store16_strided,
    store_i64,
)
from fastllm.kernels.norm import normalize
from fastllm.kernels.quantize import quantize
from fastllm.kernels.rope import rotate
from fastllm.kernels.sync import (
    JOB,
    JOB_SLEEPERS,
    QUIT,
    atomic_load,
    atomic_store,
    barrier,
    publish,
    wait_change,
)
from fastllm.kernels.words import Code, Context, Op


@kernel(I, *[I] * (MATMUL_ARGS + 1))
def _call(e: Emitter, *values: Value) -> Value:
    """Call a unit by address, in Numba's native convention; returns its int64 result."""
    b = e.b
    pointer = ir.IntType(8).as_pointer()
    head = [i64.as_pointer(), pointer.as_pointer()]
    convention = ir.FunctionType(i32, head + [i64] * MATMUL_ARGS)
    function = b.inttoptr(values[0], convention.as_pointer())
    with b.goto_entry_block():
        result, exception = b.alloca(i64), b.alloca(pointer)
    b.call(function, [result, exception, *values[1:]])
    return b.load(result)


@kernel(I)
def _clock(e: Emitter) -> Value:
    return e.call("llvm.readcyclecounter", i64)


@compiled
def _word(address: int, index: int) -> Any:
    return load_i64(address + 8 * index)


@compiled
def _run_norm(c: int, op: int, tid: int, threads: int, scratch: int) -> None:
    kind, source, stride = _word(op, Op.A), _word(op, Op.B), _word(op, Op.C)
    columns, weight, bias = _word(op, Op.D), _word(op, Op.E), _word(op, Op.F)
    eps = float_of_bits(_word(op, Op.G))
    out, out_stride, accumulate = _word(op, Op.H), _word(op, Op.I), _word(op, Op.J)
    tiles, tile_kind, token_bytes = _word(op, Op.K), _word(op, Op.L), _word(op, Op.M)
    chosen = _word(op, Op.N)
    count = _word(c, Context.NUM_ROWS) if chosen != 0 else _word(c, Context.NUM_TOKENS)
    rows = _word(c, Context.LOGIT_ROWS)
    for t in range(tid, count, threads):
        row = load_i32(rows + 4 * t) if chosen == 1 else t
        x = source + row * stride
        if kind >= 0:
            normalize(kind, x, weight, bias, columns, eps, scratch)
            x = scratch
        if out != 0:
            y = out + t * out_stride
            for i in range((columns + 15) // 16):
                v = load16(x + 64 * i)
                if accumulate != 0:
                    v = add16(load16(y + 64 * i), v)
                store16(y + 64 * i, v)
            x = y
        if tiles != 0:
            quantize(tile_kind, x, 0, columns, 1, tiles, token_bytes, count, t)


@compiled
def _run_matmul(c: int, op: int, tid: int, threads: int, scratch: int) -> None:
    count = _word(c, Context.NUM_TOKENS)
    if _word(op, Op.L) != 0:
        count = _word(c, Context.NUM_ROWS)
    panels = _word(op, Op.E)
    _call(
        _word(op, Op.A), _word(op, Op.B), _word(op, Op.C), _word(op, Op.D), _word(op, Op.F),
        _word(op, Op.G), count, _word(op, Op.H), _word(op, Op.I),
        panels * tid // threads, panels * (tid + 1) // threads,
        _word(op, Op.J), _word(op, Op.K), _word(c, Context.PREFETCH), scratch,
    )  # fmt: skip


@compiled
def _run_rope(c: int, op: int, tid: int, threads: int, scratch: int) -> None:
    q, k, v = _word(op, Op.A), _word(op, Op.B), _word(op, Op.C)
    q_stride, k_stride, v_stride = _word(op, Op.D), _word(op, Op.E), _word(op, Op.F)
    queries, pages, page_stride = _word(op, Op.G), _word(op, Op.H), _word(op, Op.I)
    heads, kv_heads, head_dim = _word(op, Op.J), _word(op, Op.K), _word(op, Op.L)
    style, rotary_dim, table = _word(op, Op.M), _word(op, Op.N), _word(op, Op.O)
    scale = float_of_bits(_word(op, Op.P))
    q_norm, k_norm = _word(op, Op.Q), _word(op, Op.R)
    eps = float_of_bits(_word(op, Op.S))
    one = float_of_bits(0x3F800000)
    dim = (head_dim + 15) // 16 * 16
    group = heads // kv_heads
    tokens = _word(c, Context.NUM_TOKENS)
    positions, seqs = _word(c, Context.POSITIONS), _word(c, Context.SEQ_OF_TOKEN)
    rows = _word(c, Context.ROPE_ROWS)
    size = 4 if _word(c, Context.WIDE_CACHE) != 0 else 2  # bytes of a stored value
    head_bytes = 2 * PAGE * dim * size
    # work items: (token, kv head), so that one token's heads are shared between threads too
    for item in range(tokens * kv_heads * tid // threads,
                      tokens * kv_heads * (tid + 1) // threads):  # fmt: skip
        t, h = item // kv_heads, item % kv_heads
        position = load_i32(positions + 4 * t)
        angles = table + load_i32(rows + 4 * t) * 8 * rotary_dim
        for g in range(group):
            x = q + t * q_stride + 4 * head_dim * (h * group + g)
            if q_norm != 0:
                normalize(0, x, q_norm, 0, head_dim, eps, scratch)
                x = scratch
            out = queries + ((h * tokens + t) * group + g) * 4 * dim
            rotate(style, x, head_dim, rotary_dim, angles, scale, out)
        seq = load_i32(seqs + 4 * t)
        row = _word(c, Context.TABLES) + seq * _word(c, Context.TABLE_STRIDE)
        block, slot = load_i32(row + 4 * (position // PAGE)), position % PAGE
        page = pages + block * page_stride + h * head_bytes
        x = k + t * k_stride + 4 * head_dim * h
        if k_norm != 0:
            normalize(0, x, k_norm, 0, head_dim, eps, scratch + 4 * dim)
            x = scratch + 4 * dim
        rotate(style, x, head_dim, rotary_dim, angles, one, scratch)
        lane = page + (slot // 16 * dim * 16 + slot % 16) * size
        for i in range(dim // 16):
            key = load16(scratch + 64 * i)
            if size == 2:
                store16_half_strided(lane + 512 * i, 32, key)
            else:
                store16_strided(lane + 1024 * i, 64, key)
        x = v + t * v_stride + 4 * head_dim * h
        rotate(0, x, head_dim, 0, angles, one, scratch)
        values = page + (PAGE + slot) * dim * size
        for i in range(dim // 16):
            if size == 2:
                store16_half(values + 32 * i, load16(scratch + 64 * i))
            else:
                store16(values + 64 * i, load16(scratch + 64 * i))


@compiled
def partial(c: int, token: int, head: int, heads: int, chunk: int, dim: int) -> Any:
    """Address of the output of one (token, head, chunk); its state lies behind it."""
    index = (token * heads + head) * _word(c, Context.MAX_CHUNKS) + chunk
    return _word(c, Context.PARTIALS) + index * (4 * dim + 64)


@compiled
def _run_attention(c: int, op: int, tid: int, threads: int, scratch: int) -> None:
    queries, pages, page_stride = _word(op, Op.A), _word(op, Op.B), _word(op, Op.C)
    heads, kv_heads, head_dim = _word(op, Op.D), _word(op, Op.E), _word(op, Op.F)
    window, cap = _word(op, Op.G), float_of_bits(_word(op, Op.H))
    out, out_stride = _word(op, Op.I), _word(op, Op.J)
    dim = (head_dim + 15) // 16 * 16
    group = heads // kv_heads
    wide = _word(c, Context.WIDE_CACHE)
    head_bytes = 2 * PAGE * dim * (4 if wide != 0 else 2)
    tokens = _word(c, Context.NUM_TOKENS)
    starts, positions = _word(c, Context.SEQ_STARTS), _word(c, Context.POSITIONS)
    split = tokens <= _word(c, Context.SPLIT_TOKENS)
    tile_tokens = 1 if split else max(1, TILE_ROWS // group)
    o = scratch + 1024 + 2 * PAGE * dim * 4
    max_rows = (tile_tokens * group + 3) // 4 * 4  # keeps the outputs 64-byte aligned
    state = o + max_rows * 4 * dim
    total = state + max_rows * STATE_BYTES
    total_state = total + max_rows * 4 * dim
    item = 0
    for s in range(_word(c, Context.NUM_SEQS)):
        begin, end = load_i32(starts + 4 * s), load_i32(starts + 4 * s + 4)
        table = _word(c, Context.TABLES) + s * _word(c, Context.TABLE_STRIDE)
        # the last tokens see most: hand them out first
        last_tile = (end - begin + tile_tokens - 1) // tile_tokens - 1
        for back in range(last_tile + 1):
            t = begin + (last_tile - back) * tile_tokens
            n = min(tile_tokens, end - t)
            position = load_i32(positions + 4 * t)
            last_page = (position + n - 1) // PAGE + 1
            chunks = (last_page + CHUNK_PAGES - 1) // CHUNK_PAGES
            for h in range(kv_heads):
                q = queries + (h * tokens + t) * group * 4 * dim
                head_pages = pages + h * head_bytes
                if split:
                    for j in range(chunks):
                        if item % threads == tid:
                            attend_chunk(
                                q, group, group, position, window, cap, dim, head_pages,
                                page_stride, wide, table, j * CHUNK_PAGES,
                                min(last_page, (j + 1) * CHUNK_PAGES), o, state, scratch,
                            )  # fmt: skip
                            for g in range(group):
                                place = partial(c, t, h * group + g, heads, j, dim)
                                for i in range(dim // 16):
                                    at = o + 4 * dim * g + 64 * i
                                    store16(place + 64 * i, load16(at))
                                store16(place + 4 * dim, load16(state + STATE_BYTES * g))
                        item += 1
                    continue
                if item % threads == tid:
                    rows = n * group
                    for j in range(chunks):
                        first = j * CHUNK_PAGES
                        last = min(last_page, first + CHUNK_PAGES)
                        if j == 0:
                            attend_chunk(
                                q, rows, group, position, window, cap, dim, head_pages,
                                page_stride, wide, table, first, last,
                                total, total_state, scratch,
                            )  # fmt: skip
                        else:
                            attend_chunk(
                                q, rows, group, position, window, cap, dim, head_pages,
                                page_stride, wide, table, first, last, o, state, scratch,
                            )  # fmt: skip
                            merge_chunk(rows, dim, o, state, total, total_state)
                    for r in range(rows):
                        head = h * group + r % group
                        place = out + (t + r // group) * out_stride + 4 * head_dim * head
                        finish_row(
                            dim, head_dim, total + 4 * dim * r,
                            total_state + STATE_BYTES * r, place,
                        )  # fmt: skip
                item += 1


@compiled
def _run_merge(c: int, op: int, tid: int, threads: int) -> None:
    heads, head_dim = _word(op, Op.D), _word(op, Op.F)
    out, out_stride = _word(op, Op.I), _word(op, Op.J)
    tiles, kind, token_bytes = _word(op, Op.K), _word(op, Op.L), _word(op, Op.M)
    columns = _word(op, Op.N)
    dim = (head_dim + 15) // 16 * 16
    tokens = _word(c, Context.NUM_TOKENS)
    positions = _word(c, Context.POSITIONS)
    split = tokens <= _word(c, Context.SPLIT_TOKENS)
    for t in range(tid, tokens, threads):
        row = out + t * out_stride
        if split:
            position = load_i32(positions + 4 * t)
            pages = position // PAGE + 1
            chunks = (pages + CHUNK_PAGES - 1) // CHUNK_PAGES
            for h in range(heads):
                first = partial(c, t, h, heads, 0, dim)
                for j in range(1, chunks):
                    place = partial(c, t, h, heads, j, dim)
                    merge_chunk(1, dim, place, place + 4 * dim, first, first + 4 * dim)
                finish_row(dim, head_dim, first, first + 4 * dim, row + 4 * head_dim * h)
        quantize(kind, row, 0, columns, 1, tiles, token_bytes, tokens, t)


@compiled
def _run_activate(c: int, op: int, tid: int, threads: int, scratch: int) -> None:
    function, gate, up = _word(op, Op.A), _word(op, Op.B), _word(op, Op.C)
    stride, columns = _word(op, Op.D), _word(op, Op.E)
    tiles, kind, token_bytes = _word(op, Op.F), _word(op, Op.G), _word(op, Op.H)
    tokens = _word(c, Context.NUM_TOKENS)
    blocks = (columns + 255) // 256
    for item in range(tokens * blocks * tid // threads, tokens * blocks * (tid + 1) // threads):
        t, first = item // blocks, item % blocks * 256
        at = t * stride + 4 * first
        count = min(256, columns - first)
        for i in range(16):
            x = load16((gate if gate != 0 else up) + at + 64 * i)
            if function == 0:
                y = silu16(x)
            elif function == 1:
                y = gelu16(x)
            elif function == 2:
                y = gelu_tanh16(x)
            else:
                y = relu16(x)
            if gate != 0:
                y = mul16(y, load16(up + at + 64 * i))
            store16(scratch + 64 * i, y)
        last = 1 if first + count == columns else 0
        quantize(kind, scratch, first, count, last, tiles, token_bytes, tokens, t)


@compiled
def _run_rows(c: int, op: int, tid: int, threads: int, code: int) -> None:
    tokens = _word(c, Context.NUM_TOKENS)
    if code == Code.ADD:
        columns = _word(op, Op.E)
        for t in range(tid, tokens, threads):
            a = _word(op, Op.A) + t * _word(op, Op.B)
            b = _word(op, Op.C) + t * _word(op, Op.D)
            for i in range((columns + 15) // 16):
                store16(a + 64 * i, add16(load16(a + 64 * i), load16(b + 64 * i)))
    elif code == Code.QUANTIZE:
        for t in range(tid, tokens, threads):
            quantize(
                _word(op, Op.E), _word(op, Op.A) + t * _word(op, Op.B), 0, _word(op, Op.C), 1,
                _word(op, Op.D), _word(op, Op.F), tokens, t,
            )  # fmt: skip
    else:
        cap = float_of_bits(_word(op, Op.D))
        wide, inverse = splat16(cap), splat16(float_of_bits(0x3F800000) / cap)
        vectors = (_word(op, Op.C) + 15) // 16
        rows = _word(c, Context.NUM_ROWS)
        for item in range(rows * vectors * tid // threads,
                          rows * vectors * (tid + 1) // threads):  # fmt: skip
            at = _word(op, Op.A) + item // vectors * _word(op, Op.B) + item % vectors * 64
            store16(at, mul16(wide, tanh16(mul16(load16(at), inverse))))


@compiled
def _run(c: int, tid: int) -> None:
    threads, area, spin = _word(c, Context.THREADS), _word(c, Context.SYNC), _word(c, Context.SPIN)
    scratch = _word(c, Context.SCRATCH) + tid * _word(c, Context.SCRATCH_STRIDE)
    ops, profile = _word(c, Context.OPS), _word(c, Context.PROFILE)
    for_matmul = scratch + _word(c, Context.MATMUL_SCRATCH)
    for_head = scratch + _word(c, Context.HEAD_SCRATCH)
    for_attention = scratch + _word(c, Context.ATTEND_SCRATCH)
    for i in range(_word(c, Context.NUM_OPS)):
        op = ops + i * 8 * Op.WORDS
        code = _word(op, Op.CODE)
        before = _clock() if profile != 0 and tid == 0 else 0
        if code == Code.MATMUL:
            _run_matmul(c, op, tid, threads, for_matmul)
        elif code == Code.NORM:
            _run_norm(c, op, tid, threads, scratch)
        elif code == Code.ROPE:
            _run_rope(c, op, tid, threads, for_head)
        elif code == Code.ATTENTION:
            _run_attention(c, op, tid, threads, for_attention)
        elif code == Code.MERGE:
            _run_merge(c, op, tid, threads)
        elif code == Code.ACTIVATE:
            _run_activate(c, op, tid, threads, scratch)
        else:
            _run_rows(c, op, tid, threads, code)
        if profile != 0 and tid == 0:
            now = _clock()
            store_i64(profile + 16 * i, load_i64(profile + 16 * i) + now - before)
            before = now
        if _word(op, Op.BARRIER) != 0:
            barrier(area, threads, spin)
        if profile != 0 and tid == 0:
            place = profile + 16 * i + 8
            store_i64(place, load_i64(place) + _clock() - before)


def step(operation: int, c: int, tid: int) -> int:
    """The function of the unit "step".

    step(RUN, context, 0)      run the batch that the context describes (the caller is thread 0)
    step(WORK, context, tid)   a worker's life: parked at the gate, one step per job, until STOP
    step(STOP, context, 0)     let the workers return
    """
    area, gate_spin = _word(c, Context.SYNC), _word(c, Context.GATE_SPIN)
    if operation == WORK:
        seen = 0
        while True:
            wait_change(area + JOB, seen, area + JOB_SLEEPERS, gate_spin)
            seen = atomic_load(area + JOB)
            if atomic_load(area + QUIT) != 0:
                return 0
            _run(c, tid)
    if operation == STOP:
        atomic_store(area + QUIT, 1)
    publish(area + JOB, (atomic_load(area + JOB) + 1) & 0x3FFFFFFF, area + JOB_SLEEPERS)
    if operation == RUN:
        _run(c, 0)
    return 0
