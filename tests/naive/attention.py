"""The oracle of paged attention: one query row against a plain list of positions, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.naive.forward import soft_cap


def attend(
    q: NDArray[np.floating],
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    position: int,
    window: int = 0,
    cap: float = 0.0,
) -> NDArray[np.float64]:
    """Return what the query at `position` sees, softmax to the base 2.

    Parameters
    ----------
    q : float[head_dim]
        Scaled by log2(e) * scale.
    keys, values : float[num_positions, head_dim]
    window : int
        Positions seen, its own included; 0: all.
    cap : float
        Scores become cap * tanh(score / cap); 0: they stay.
    """
    first = max(0, position - window + 1) if window else 0
    seen = slice(first, position + 1)
    scores = keys[seen].astype(np.float64) @ q.astype(np.float64)
    scores = soft_cap(scores, cap or None)
    weights = np.exp2(scores - scores.max())
    return weights / weights.sum() @ values[seen].astype(np.float64)


def to_codes(x: NDArray[np.floating]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return (codes, units) of rows: of length 46000, or less where a code would pass 32767."""
    length = np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True))
    largest = np.abs(x).max(-1, keepdims=True)
    units = np.maximum(length / 46000, largest.astype(np.float64) / 32767)
    codes = np.rint(np.divide(x, units, out=np.zeros(x.shape), where=units > 0))
    return codes.astype(np.int16), units[..., 0].astype(np.float32)


def from_codes(codes: NDArray[np.int16], units: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what codes stand for."""
    return codes * units[..., None].astype(np.float64)


def to_pages(
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    table: NDArray[np.integer],
    num_blocks: int,
    kv_type: str,
) -> NDArray[np.uint8]:
    """Return blocks as the cache holds them.

    Parameters
    ----------
    keys, values : float[num_positions, dim]
        One kv head; dim is a multiple of 16.
    table : int[num_pages]
        Block of every 64 positions.
    kv_type : str
        "f16" or "f32": keys with the position as the last axis, values as they are. "i16": codes,
        keys as pairs of dimensions, values as pairs of positions, each followed by units.

    Returns
    -------
    uint8[num_blocks, page_bytes]
        Bytes of 255 (NaN, in floats) wherever nothing was stored.
    """
    count, dim = keys.shape
    num_pages = len(table)

    def paged(rows: NDArray) -> NDArray:
        """[num_pages, 64, ...]"""
        out = np.empty((64 * num_pages, *rows.shape[1:]), rows.dtype)
        out.view(np.uint8)[:] = 255
        out[:count] = rows
        return out.reshape(num_pages, 64, *rows.shape[1:])

    if kv_type == "i16":
        (k, k_units), (v, v_units) = to_codes(keys), to_codes(values)
        k = paged(k).reshape(num_pages, 4, 16, dim // 2, 2).transpose(0, 1, 3, 2, 4)
        v = paged(v).reshape(num_pages, 32, 2, dim).transpose(0, 1, 3, 2)
        parts = [k, paged(k_units), v, paged(v_units)]
    else:
        dtype = {"f16": np.float16, "f32": np.float32}[kv_type]
        k = paged(keys.astype(dtype)).reshape(num_pages, 4, 16, dim).transpose(0, 1, 3, 2)
        parts = [k, paged(values.astype(dtype))]
    flat = [np.ascontiguousarray(part).reshape(num_pages, -1).view(np.uint8) for part in parts]
    stored = np.concatenate(flat, axis=1)
    blocks = np.full((num_blocks, stored.shape[1]), 255, np.uint8)
    blocks[table] = stored
    return blocks
