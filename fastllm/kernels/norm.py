"""RMS norm and layer norm of one row."""

from __future__ import annotations

import numpy as np

from fastllm.kernels.functions import sqrt
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import (
    add16,
    fma16,
    keep16,
    load16,
    mul16,
    splat16,
    store16,
    sub16,
    sum16,
    zero16,
)
from fastllm.kernels.words import NORMS

_LAYER = NORMS["layer"]


@compiled
def normalize(
    kind: int, x: int, weight: int, bias: int, columns: int, eps: float, out: int
) -> None:
    """Norm a row of float32 at `x`; addresses of rows.

    ``out`` may be ``x``. Rows and the weight are padded to 16 floats; padding of `out` becomes
    zero, given that the padding of `weight` and `bias` is zero. `bias` may be 0.
    """
    vectors = (columns + 15) // 16
    count = np.float32(columns)
    mean = np.float32(0.0)
    if kind == _LAYER:
        total = zero16()
        for i in range(vectors):
            total = add16(total, keep16(load16(x + 64 * i), columns - 16 * i))
        mean = sum16(total) / count
    shift = splat16(mean)
    squares = zero16()
    for i in range(vectors):
        v = keep16(sub16(load16(x + 64 * i), shift), columns - 16 * i)
        squares = fma16(v, v, squares)
    scale = splat16(np.float32(1.0) / sqrt(sum16(squares) / count + np.float32(eps)))
    for i in range(vectors):
        v = mul16(mul16(sub16(load16(x + 64 * i), shift), scale), load16(weight + 64 * i))
        if bias != 0:
            v = add16(v, load16(bias + 64 * i))
        store16(out + 64 * i, v)
