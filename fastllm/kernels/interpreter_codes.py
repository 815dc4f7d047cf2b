"""What a call of the unit "step" does, and the scratch its threads need: numbers without numba."""

from __future__ import annotations

RUN, WORK, STOP = 0, 1, 2

# int64 arguments of the units (``kernels.build``)
STEP_ARGS, PACK_ARGS, MATMUL_ARGS = 3, 9, 14

PAGE = 64  # positions of a KV page
CHUNK_PAGES = 8  # pages of an attention chunk: work to share between threads, and few merges
STATE_BYTES = 16  # of an attention row: maximum, sum, last rescale
TILE_ROWS = 64  # query rows (tokens x heads of a group) that share a widened page
MATMUL_SCRATCH = 1024 + 8 * 64  # decoded scales, then a tile of results (8 tokens x 16 rows)


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
        "bytes": attend + 1024 + 2 * PAGE * max_dim * 4 + outputs + 4096,
    }
