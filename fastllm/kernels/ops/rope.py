"""Rotate queries and keys; put keys and values into the cache."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.kv_page import (
    PAGE,
    padded_head_dim,
    page_bytes,
    store_key,
    store_query,
    store_value,
)
from fastllm.kernels.words import Context, Failure, Words

if COMPILING:
    from fastllm.kernels.context import failed_at, num_rows, num_threads, scratch_of, word
    from fastllm.kernels.memory import float_of_bits, load_i32
    from fastllm.kernels.norm import normalize
    from fastllm.kernels.rope import rotate

_HALF_RANGE = Failure.HALF_RANGE.value


class Rope(Words):
    """Words of the op."""

    Q = auto()
    K = auto()
    V = auto()
    Q_STRIDE = auto()
    K_STRIDE = auto()
    V_STRIDE = auto()
    QUERIES = auto()  # rotated, scaled: float32[kv head][token][head of its group][padded dim]
    PAGES = auto()  # of the layer
    PAGE_STRIDE = auto()
    KV_TYPE = auto()  # kv_page.KV_TYPES
    NUM_HEADS = auto()
    NUM_KV_HEADS = auto()
    HEAD_DIM = auto()
    STYLE = auto()  # ROPE_STYLES, 0: no rotation
    ROTARY_DIM = auto()
    ANGLES = auto()  # a table of rows
    SCALE = auto()  # of queries
    Q_NORM = auto()  # weights, 0: none
    K_NORM = auto()
    EPS = auto()  # of both norms


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A (token, kv head) at a time, so that threads share one token's heads, too."""
    threads, scratch = num_threads(c), scratch_of(c, tid) + word(c, Context.HEAD_SCRATCH)
    q, k, v = word(op, Rope.Q), word(op, Rope.K), word(op, Rope.V)
    q_stride, k_stride = word(op, Rope.Q_STRIDE), word(op, Rope.K_STRIDE)
    v_stride, queries = word(op, Rope.V_STRIDE), word(op, Rope.QUERIES)
    pages, page_stride = word(op, Rope.PAGES), word(op, Rope.PAGE_STRIDE)
    heads, kv_heads = word(op, Rope.NUM_HEADS), word(op, Rope.NUM_KV_HEADS)
    head_dim, style = word(op, Rope.HEAD_DIM), word(op, Rope.STYLE)
    rotary_dim, table = word(op, Rope.ROTARY_DIM), word(op, Rope.ANGLES)
    scale, eps = float_of_bits(word(op, Rope.SCALE)), float_of_bits(word(op, Rope.EPS))
    q_norm, k_norm = word(op, Rope.Q_NORM), word(op, Rope.K_NORM)
    one = float_of_bits(0x3F800000)
    dim = padded_head_dim(head_dim)
    group = heads // kv_heads
    tokens = num_rows(c, op)
    positions, seqs = word(c, Context.POSITIONS), word(c, Context.SEQ_OF_TOKEN)
    rows = word(c, Context.ROPE_ROWS)
    kv_type = word(op, Rope.KV_TYPE)
    head_bytes = page_bytes(dim, kv_type)
    failure = 0
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
            store_query(out, dim, kv_type)
        seq = load_i32(seqs + 4 * t)
        row = word(c, Context.TABLES) + seq * word(c, Context.TABLE_STRIDE)
        block, slot = load_i32(row + 4 * (position // PAGE)), position % PAGE
        page = pages + block * page_stride + h * head_bytes
        x = k + t * k_stride + 4 * head_dim * h
        if k_norm != 0:
            normalize(0, x, k_norm, 0, head_dim, eps, scratch + 4 * dim)
            x = scratch + 4 * dim
        rotate(style, x, head_dim, rotary_dim, angles, one, scratch)
        over = store_key(page, slot, dim, kv_type, scratch)
        x = v + t * v_stride + 4 * head_dim * h
        rotate(0, x, head_dim, 0, angles, one, scratch)
        over |= store_value(page, slot, dim, kv_type, scratch)
        if over != 0:
            failed_at(c, t)
            failure = _HALF_RANGE
    return failure
