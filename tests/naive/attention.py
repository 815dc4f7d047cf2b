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


def to_pages(
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    table: NDArray[np.integer],
    num_blocks: int,
    dtype: type,
) -> NDArray:
    """Return blocks as the cache holds them, keys with the position as the last axis.

    Parameters
    ----------
    keys, values : float[num_positions, dim]
        One kv head; dim is a multiple of 16.
    table : int[num_pages]
        Block of every 64 positions.

    Returns
    -------
    dtype[num_blocks, 2, 64 * dim]
        NaN wherever nothing was stored.
    """
    count, dim = keys.shape
    padded = np.full((2, 64 * len(table), dim), np.nan, dtype)
    padded[0, :count], padded[1, :count] = keys, values
    pages = np.full((num_blocks, 2, 64 * dim), np.nan, dtype)
    k = padded[0].reshape(len(table), 4, 16, dim).transpose(0, 1, 3, 2)
    pages[table, 0] = k.reshape(len(table), -1)
    pages[table, 1] = padded[1].reshape(len(table), -1)
    return pages
