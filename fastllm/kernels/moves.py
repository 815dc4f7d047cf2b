"""The tables that the packing kernel reads: a layout as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.layouts import LAYOUTS


def move_table(name: str) -> NDArray[np.int64]:
    """Table of a format: [num_halves, num_dwords, half offsets..., (offset, move)...]."""
    layout = LAYOUTS[name]
    words = [len(layout.halves), len(layout.dwords), *layout.halves]
    for offset, move in layout.dwords:
        words += [offset, move]
    return np.array(words, np.int64)
