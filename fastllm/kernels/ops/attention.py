"""Every query against its sequence's pages; small batches leave chunks to be merged."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.interpreter_codes import CHUNK_PAGES, STATE_BYTES, TILE_ROWS
from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.kv_page import F32, PAGE, padded_head_dim, page_bytes
from fastllm.kernels.words import Context, Words

if COMPILING:
    from fastllm.kernels.attention import attend_chunk, finish_row, merge_chunk, partial_of
    from fastllm.kernels.context import num_rows, num_threads, scratch_of, word
    from fastllm.kernels.memory import float_of_bits, load16, load_i32, store16


class Attention(Words):
    """Words of the op."""

    QUERIES = auto()  # as `Rope` leaves them
    PAGES = auto()  # of the layer
    PAGE_STRIDE = auto()
    KV_TYPE = auto()  # kv_page.KV_TYPES
    NUM_HEADS = auto()
    NUM_KV_HEADS = auto()
    HEAD_DIM = auto()
    WINDOW = auto()  # positions a token sees, its own included; 0: all
    CAP = auto()  # of scores, 0: none
    OUT = auto()
    OUT_STRIDE = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A tile of a sequence's queries and a kv head at a time; few tokens: one chunk of pages."""
    threads, scratch = num_threads(c), scratch_of(c, tid) + word(c, Context.ATTEND_SCRATCH)
    queries, pages = word(op, Attention.QUERIES), word(op, Attention.PAGES)
    page_stride, kv_type = word(op, Attention.PAGE_STRIDE), word(op, Attention.KV_TYPE)
    heads, kv_heads = word(op, Attention.NUM_HEADS), word(op, Attention.NUM_KV_HEADS)
    head_dim, window = word(op, Attention.HEAD_DIM), word(op, Attention.WINDOW)
    cap = float_of_bits(word(op, Attention.CAP))
    out, out_stride = word(op, Attention.OUT), word(op, Attention.OUT_STRIDE)
    dim = padded_head_dim(head_dim)
    group = heads // kv_heads
    head_bytes = page_bytes(dim, kv_type)
    tokens = num_rows(c, op)
    starts, positions = word(c, Context.SEQ_STARTS), word(c, Context.POSITIONS)
    split = tokens <= word(c, Context.SPLIT_TOKENS)
    tile_tokens = 1 if split else max(1, TILE_ROWS // group)
    o = scratch + 1024 + page_bytes(dim, F32)
    max_rows = (tile_tokens * group + 3) // 4 * 4  # keeps the outputs 64-byte aligned
    state = o + max_rows * 4 * dim
    total = state + max_rows * STATE_BYTES
    total_state = total + max_rows * 4 * dim
    item = 0
    for s in range(word(c, Context.NUM_SEQS)):
        begin, end = load_i32(starts + 4 * s), load_i32(starts + 4 * s + 4)
        table = word(c, Context.TABLES) + s * word(c, Context.TABLE_STRIDE)
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
                                page_stride, kv_type, table, j * CHUNK_PAGES,
                                min(last_page, (j + 1) * CHUNK_PAGES), o, state, scratch,
                            )  # fmt: skip
                            for g in range(group):
                                place = partial_of(c, t, h * group + g, heads, j, dim)
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
                                page_stride, kv_type, table, first, last,
                                total, total_state, scratch,
                            )  # fmt: skip
                        else:
                            attend_chunk(
                                q, rows, group, position, window, cap, dim, head_pages,
                                page_stride, kv_type, table, first, last, o, state, scratch,
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
    return 0
