"""How a row of activations lies in memory for the matrix kernels.

Tokens lie in tiles (``kernels.tiles``). A tile of R tokens is one linear stream, group after group
of columns; a token takes `token_bytes` whatever tile it is in, so the tile that begins with token t
begins at ``t * token_bytes``.

"q32": int8 codes with a scale per 32 columns, for formats with a scale per 32. One group::

    dx f32[R] | dx * sum f32[R] | -128 * sum int32[R] | codes int8[R][32]          44 R bytes

"q256": int8 codes with a scale per 256, for K-quants (the grid of ggml's q8_K)::

    dx f32[R] | sums of 32: 4 x (2 x int16)[R] | -32 * sums of 16: int32[16][R] | int8[8][R][32]
                                                                                  340 R bytes
"f32": the values, column by column: f32[columns][R].

x = dx * code, code = round(x / dx), dx = max|x| / 127. The sums pay for offsets and minima of the
weights without touching the codes again; every integer sum is exact.
"""

from __future__ import annotations

GROUP = {"q32": 32, "q256": 256, "f32": 4}
GROUP_TOKEN_BYTES = {"q32": 44, "q256": 340, "f32": 16}
KINDS = {"f32": 0, "q32": 1, "q256": 2}
# q32 rows are padded to 64 columns, because two-block units read both halves
_PAD = {"q32": 64, "q256": 256, "f32": 4}


def padded_columns(kind: str, columns: int) -> int:
    """Columns that are stored for a row of `columns`."""
    return -(-columns // _PAD[kind]) * _PAD[kind]


def token_bytes(kind: str, columns: int) -> int:
    """Bytes that one token takes."""
    return padded_columns(kind, columns) // GROUP[kind] * GROUP_TOKEN_BYTES[kind]
