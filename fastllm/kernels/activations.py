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

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.tiles import tiles

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


def quantize_reference(
    x: NDArray[np.float32], group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes int8[M, K] and scales float32[M, K / group] of float32[M, K]; K a multiple of group."""
    m, k = x.shape
    y = x.reshape(m, k // group, group)
    amax = np.abs(y).max(-1)
    dx = (amax * np.float32(1 / 127)).astype(np.float32)
    safe = np.where(amax > 0, amax, np.float32(1))
    inverse = np.where(amax > 0, np.float32(127) / safe, np.float32(0)).astype(np.float32)
    codes = np.rint(y * inverse[..., None]).astype(np.int8)
    return codes.reshape(m, k), dx


def layout_reference(kind: str, x: NDArray[np.float32], largest_tile: int) -> NDArray[np.uint8]:
    """Bytes of float32[M, K] as the kernels want them; the plain NumPy twin of the quantizer."""
    m, columns = x.shape
    padded = np.zeros((m, padded_columns(kind, columns)), np.float32)
    padded[:, :columns] = x
    out = []
    for start, size in tiles(m, largest_tile):
        out.append(_tile(kind, padded[start : start + size]))
    return np.concatenate(out) if out else np.zeros(0, np.uint8)


def _bytes(a: NDArray[np.generic], groups: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(a).view(np.uint8).reshape(groups, -1)


def _tile(kind: str, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    size, columns = x.shape
    if kind == "f32":
        return _bytes(x.T.astype(np.float32), columns).reshape(-1)
    group = GROUP[kind]
    n = columns // group
    codes, dx = quantize_reference(x, group)
    wide = codes.astype(np.int32).reshape(size, n, group)
    parts: list[NDArray[np.uint8]] = [_bytes(dx.T, n)]
    if kind == "q32":
        total = wide.sum(-1, dtype=np.int32)
        parts.append(_bytes((dx * total.astype(np.float32)).T, n))
        parts.append(_bytes(-128 * total.T, n))
        parts.append(_bytes(codes.reshape(size, n, 32).transpose(1, 0, 2), n))
    else:
        s32 = wide.reshape(size, n, 4, 2, 32).sum(-1, dtype=np.int32).astype(np.int16)
        s16 = -32 * wide.reshape(size, n, 16, 16).sum(-1, dtype=np.int32)
        parts.append(_bytes(s32.transpose(1, 2, 0, 3), n))
        parts.append(_bytes(s16.transpose(1, 2, 0), n))
        parts.append(_bytes(codes.reshape(size, n, 8, 32).transpose(1, 2, 0, 3), n))
    return np.concatenate(parts, axis=-1).reshape(-1)
