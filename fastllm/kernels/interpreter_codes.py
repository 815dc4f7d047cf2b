"""What a call of the unit "step" does, and the scratch its threads need: numbers without numba."""

from __future__ import annotations

from fastllm.kernels.kv_page import F32, page_bytes

RUN, WORK, END = 0, 1, 2
GONE = -1  # of RUN: the crew has ended, take another

# int64 arguments of the units (``kernels.build``)
STEP_ARGS, PACK_ARGS, OP_ARGS, PICK_ARGS = 3, 2, 3, 4

CHUNK_PAGES = 8  # pages of an attention chunk: work to share between threads, and few merges
STATE_BYTES = 16  # of an attention row: maximum, sum, last rescale
TILE_ROWS = 64  # query rows (tokens x heads of a group) that share a widened page
SCALES_BYTES = 1024  # decoded scales of a super-block: 16 vectors
# Tokens that share one pass over a thread's panels. Activations of a block should stay in the
# second-level cache while panels pass: 64 tokens x 4096 columns x 1.33 bytes = 350 KB.
TOKEN_BLOCK = 64
# Scratch of a matrix kernel: scales, results (a block of tokens x 16 rows), AMX operands.
MATMUL_SCRATCH = SCALES_BYTES + 64 * TOKEN_BLOCK + 6144 + 64


def scratch_layout(max_columns: int, max_dim: int) -> dict[str, int]:
    """Byte offsets of a thread's scratch, and its size.

    Parameters
    ----------
    max_columns : int
        Longest row that is normed.
    max_dim : int
        Largest head dimension, padded to 16.
    """
    row = -(-max_columns // 256) * 1024
    head = row + MATMUL_SCRATCH
    attend = head + 8 * max_dim
    rows = TILE_ROWS + 128  # a group of up to 128 heads still makes one tile
    outputs = 2 * rows * (4 * max_dim + STATE_BYTES)
    return {
        "matmul": row,
        "head": head,
        "attend": attend,
        "bytes": attend + 1024 + page_bytes(max_dim, F32) + outputs + 4096,
    }
