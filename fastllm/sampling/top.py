"""The k largest of many logits, exactly, without sorting them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Values per group. With 50,000 logits and k = 40: 780 groups, whose 40th largest maximum leaves
# little more than k candidates. Larger groups find a weaker bound, smaller ones cost more to sort.
_MAX_WIDTH = 64
_MIN_WIDTH = 4


def top_ids(logits: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the ids of the `k` largest logits, largest first, lower id first among equals.

    The maxima of disjoint groups give a lower bound of the k-th largest value: k groups whose
    maximum reaches the bound hold at least k values that do. What is below it cannot be among the
    first k, so only the few values above are sorted.

    Parameters
    ----------
    logits : float[vocab_size]
        Without NaN.
    k : int
        At most vocab_size are returned.

    Returns
    -------
    int64[min(k, vocab_size)]
    """
    n = len(logits)
    if k <= 0:
        return np.empty(0, np.int64)
    width = min(_MAX_WIDTH, n // (4 * k))
    if width < _MIN_WIDTH:
        return _sorted(logits, np.arange(n))[:k]
    groups = n // width
    maxima = logits[: groups * width].reshape(width, groups).max(axis=0)
    bound = np.partition(maxima, groups - k)[groups - k]
    return _sorted(logits, np.flatnonzero(logits >= bound))[:k]


def _sorted(logits: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    # `ids` ascend, so a stable sort keeps the lower id first.
    return ids[np.argsort(-logits[ids], kind="stable")]
