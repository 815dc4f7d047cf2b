"""RMS norm and layer norm of one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastllm.kernels.functions import functions
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import memory
from fastllm.kernels.road import Road
from fastllm.kernels.words import NORMS


def norm(road: Road) -> Callable[..., Any]:
    """Compiled function (kind, x, weight, bias, columns, eps, out), addresses of float32 rows.

    ``out`` may be ``x``. Rows and the weight are padded to 16 floats; padding of `out` becomes
    zero, given that the padding of `weight` and `bias` is zero. `bias` may be 0.
    """
    m, f = memory(road), functions(road)
    load, store, add, sub, mul = m.load, m.store, m.add, m.sub, m.mul
    fma, splat, zero, hsum, keep = m.fma, m.splat, m.zero, m.hsum, m.keep
    sqrt, layer = f.sqrt, NORMS["layer"]

    @compiled
    def normalize(
        kind: int, x: int, weight: int, bias: int, columns: int, eps: float, out: int
    ) -> None:
        vectors = (columns + 15) // 16
        count = np.float32(columns)
        mean = np.float32(0.0)
        if kind == layer:
            total = zero()
            for i in range(vectors):
                total = add(total, keep(load(x + 64 * i), columns - 16 * i))
            mean = hsum(total) / count
        shift = splat(mean)
        squares = zero()
        for i in range(vectors):
            v = keep(sub(load(x + 64 * i), shift), columns - 16 * i)
            squares = fma(v, v, squares)
        scale = splat(np.float32(1.0) / sqrt(hsum(squares) / count + np.float32(eps)))
        for i in range(vectors):
            v = mul(mul(sub(load(x + 64 * i), shift), scale), load(weight + 64 * i))
            if bias != 0:
                v = add(v, load(bias + 64 * i))
            store(out + 64 * i, v)

    return normalize
