"""Activations as the matrix kernels read them, in plain NumPy: the oracle of the quantizer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.activations import GROUP, padded_columns
from fastllm.kernels.tiles import tiles


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
