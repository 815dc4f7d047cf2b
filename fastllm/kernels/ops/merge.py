"""Merge the chunks that `Attention` left (if it left any); lay the rows out for products."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.interpreter_codes import CHUNK_PAGES
from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.kv_page import PAGE, padded_head_dim
from fastllm.kernels.words import Context, Words

if COMPILING:
    from fastllm.kernels.attention import finish_row, merge_chunk, partial_of
    from fastllm.kernels.context import num_rows, num_threads, word
    from fastllm.kernels.memory import load_i32
    from fastllm.kernels.quantize import quantize


class Merge(Words):
    """Words of the op."""

    NUM_HEADS = auto()
    HEAD_DIM = auto()
    OUT = auto()  # attended rows
    OUT_STRIDE = auto()
    COLUMNS = auto()
    TILES = auto()
    TILES_KIND = auto()
    TOKEN_BYTES = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A row at a time."""
    heads, head_dim = word(op, Merge.NUM_HEADS), word(op, Merge.HEAD_DIM)
    out, out_stride = word(op, Merge.OUT), word(op, Merge.OUT_STRIDE)
    tiles, kind = word(op, Merge.TILES), word(op, Merge.TILES_KIND)
    token_bytes, columns = word(op, Merge.TOKEN_BYTES), word(op, Merge.COLUMNS)
    dim = padded_head_dim(head_dim)
    tokens = num_rows(c, op)
    positions = word(c, Context.POSITIONS)
    split = tokens <= word(c, Context.SPLIT_TOKENS)
    for t in range(tid, tokens, num_threads(c)):
        row = out + t * out_stride
        if split:
            position = load_i32(positions + 4 * t)
            pages = position // PAGE + 1
            chunks = (pages + CHUNK_PAGES - 1) // CHUNK_PAGES
            for h in range(heads):
                first = partial_of(c, t, h, heads, 0, dim)
                for j in range(1, chunks):
                    place = partial_of(c, t, h, heads, j, dim)
                    merge_chunk(1, dim, place, place + 4 * dim, first, first + 4 * dim)
                finish_row(dim, head_dim, first, first + 4 * dim, row + 4 * head_dim * h)
        quantize(kind, row, 0, columns, 1, tiles, token_bytes, tokens, t)
    return 0
