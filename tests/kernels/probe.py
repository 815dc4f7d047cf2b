"""A unit for tests: what only lives inside the step, compiled for a road's true target.

``python -m tests.kernels.probe OUT`` builds it, as ``fastllm.kernels.build`` builds the
others; the object is kept in the kernel cache under a name that covers this file, so that a second
run of the tests compiles nothing and imports no numba.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels import objects
from fastllm.kernels.activations import KINDS, token_bytes
from fastllm.kernels.road import Road, road_named
from tests.kernels.samples import aligned, aligned_copy

NUM_ARGS = 17  # what, and up to 16 words
FUNCTIONS = ("exp", "exp2", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "relu")
LOAD_HALF, STORE_HALF, NORM, ROTATE, QUANTIZE, CHUNK, MERGE, FINISH, BARRIERS = range(8, 17)
STORE_KEY, STORE_VALUE, STORE_QUERY = range(17, 20)


def entry() -> Callable[..., Any]:
    """Return the Python function of the unit, ready to be compiled."""
    from fastllm.kernels import functions
    from fastllm.kernels.attention import attend_chunk, finish_row, merge_chunk
    from fastllm.kernels.emit import kernel
    from fastllm.kernels.functions import gelu16, gelu_tanh16, relu16, silu16, tanh16
    from fastllm.kernels.kv_page import store_key, store_query, store_value
    from fastllm.kernels.memory import (
        V,
        float_of_bits,
        load16,
        load16_half,
        load_i64,
        store16,
        store16_half,
        store_i64,
    )
    from fastllm.kernels.norm import normalize
    from fastllm.kernels.quantize import quantize
    from fastllm.kernels.rope import rotate
    from fastllm.kernels.sync import barrier

    exp16, exp2_16, sigmoid16 = (
        kernel(V, V)(generate) for generate in (functions.exp, functions.exp2, functions.sigmoid)
    )

    def probe(what, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p):  # noqa: E741
        if what < LOAD_HALF:  # vectors a -> b, c of them
            for at in range(0, 64 * c, 64):
                x = load16(a + at)
                if what == 0:
                    y = exp16(x)
                elif what == 1:
                    y = exp2_16(x)
                elif what == 2:
                    y = sigmoid16(x)
                elif what == 3:
                    y = tanh16(x)
                elif what == 4:
                    y = silu16(x)
                elif what == 5:
                    y = gelu16(x)
                elif what == 6:
                    y = gelu_tanh16(x)
                else:
                    y = relu16(x)
                store16(b + at, y)
        elif what == LOAD_HALF:
            for v in range(c):
                store16(b + 64 * v, load16_half(a + 32 * v))
        elif what == STORE_HALF:
            for v in range(c):
                store16_half(b + 32 * v, load16(a + 64 * v))
        elif what == NORM:
            normalize(a, b, c, d, e, float_of_bits(f), g)
        elif what == ROTATE:
            rotate(a, b, c, d, e, float_of_bits(f), g)
        elif what == QUANTIZE:
            quantize(a, b, c, d, e, f, g, h, i)
        elif what == CHUNK:
            attend_chunk(a, b, c, d, e, float_of_bits(f), g, h, i, j, k, l, m, n, o, p)
        elif what == MERGE:
            merge_chunk(a, b, c, d, e, f)
        elif what == FINISH:
            finish_row(a, b, c, d, e)
        elif what == STORE_KEY:
            return store_key(a, b, c, d, e)
        elif what == STORE_VALUE:
            return store_value(a, b, c, d, e)
        elif what == STORE_QUERY:
            store_query(a, b, c)
        else:
            # a area, b threads, c own number, d rounds, e shared words, f polls: writes its own
            # word, meets the others, reads theirs; returns how often one was not what it had to be
            wrong = 0
            for r in range(1, d + 1):
                store_i64(e + 64 * c, r)
                barrier(a, b, f)
                for t in range(b):
                    if load_i64(e + 64 * t) != r:
                        wrong += 1
                barrier(a, b, f)
            return wrong
        return 0

    return probe


def main(out: str) -> None:
    """Build the unit as ``fastllm.kernels.build`` does."""
    from fastllm.kernels import build

    build._functions = lambda unit: {unit: (entry(), NUM_ARGS)}
    build.main(["probe", out])


def _compile(road: Road, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    env = {
        **os.environ,
        **road.environment(),
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    command = [sys.executable, "-m", "tests.kernels.probe", str(part)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    part.replace(path)


def _address(road: Road) -> int:
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = objects.object_path(f"probe-{source}", road)
    if not path.exists():
        _compile(road, path)
    built = objects.unpack_objects(path.read_bytes())
    return objects._LOADER.load("probe", road, built)["probe"]


class Probe:
    """The functions of one road, from arrays to arrays."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self._call = objects.callable_at(_address(road), NUM_ARGS)

    def call(self, what: int, *words: int) -> int:
        """Call with the remaining words 0."""
        return self._call(what, *map(int, words), *[0] * (NUM_ARGS - 1 - len(words)))

    def function(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One of `FUNCTIONS` of every value."""
        return self._vectors(FUNCTIONS.index(name), x, np.float32)

    def half_to_float(self, halves: NDArray[np.float16]) -> NDArray[np.float32]:
        return self._vectors(LOAD_HALF, halves, np.float32)

    def float_to_half(self, x: NDArray[np.float32]) -> NDArray[np.float16]:
        return self._vectors(STORE_HALF, x, np.float16)

    def _vectors(self, what: int, x: NDArray, dtype: type) -> NDArray:
        count = -(-len(x) // 16)
        source, out = aligned(16 * count, x.dtype), aligned(16 * count, dtype)
        source[: len(x)] = x
        self.call(what, source.ctypes.data, out.ctypes.data, count)
        return out[: len(x)]

    def norm(
        self,
        kind: int,
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        eps: float,
        in_place: bool = False,
    ) -> NDArray[np.float32]:
        """The normed row, its padding to 16 included."""
        rows = [_padded(x), _padded(weight), _padded(weight if bias is None else bias)]
        out = rows[0] if in_place else np.full_like(aligned_copy(rows[0]), np.nan)
        row, weights, biases = (array.ctypes.data for array in rows)
        self.call(
            NORM, kind, row, weights, 0 if bias is None else biases, len(x), bits(eps),
            out.ctypes.data,
        )  # fmt: skip
        return out

    def norm_of(
        self,
        kind: int,
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        columns: int,
        eps: float,
    ) -> NDArray[np.float32]:
        """As `norm`, of the first `columns` values of longer rows."""
        row, weights, out = aligned_copy(x), aligned_copy(weight), aligned(len(x), np.float32)
        self.call(
            NORM, kind, row.ctypes.data, weights.ctypes.data, 0, columns, bits(eps), out.ctypes.data
        )
        return out

    def rotate(
        self, style: int, x: NDArray[np.float32], table: NDArray[np.float32], scale: float
    ) -> NDArray[np.float32]:
        """The rotated head, its padding to 16 included; table: float32[2, rotary_dim]."""
        source, angles = _padded(x), aligned_copy(table)
        out = np.full_like(source, np.nan)
        self.call(
            ROTATE, style, source.ctypes.data, len(x), table.shape[1], angles.ctypes.data,
            bits(scale), out.ctypes.data,
        )  # fmt: skip
        return out

    def quantize(
        self, kind: str, x: NDArray[np.float32], pieces: bool = False
    ) -> NDArray[np.uint8]:
        """Tiles of float32[M, K], token by token; `pieces`: rows come in runs of 256 columns."""
        num_tokens, columns = x.shape
        size = token_bytes(kind, columns)
        out = aligned(num_tokens * size + 64)[: num_tokens * size]
        out[:] = 0xA5
        for token in np.random.default_rng(0).permutation(num_tokens):
            for first in range(0, columns, 256) if pieces else (0,):
                part = x[token, first : first + 256] if pieces else x[token]
                row = aligned_copy(part, 64)
                last = first + len(part) == columns
                self.call(
                    QUANTIZE, KINDS[kind], row.ctypes.data, first, len(part), last,
                    out.ctypes.data, size, num_tokens, token,
                )  # fmt: skip
        return out


@cache
def probe(road_name: str) -> Probe:
    return Probe(road_named(road_name))


def bits(value: float) -> int:
    """A float32 as the kernels take it in an int64."""
    return int(np.float32(value).view(np.uint32))


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    out = aligned(-(-len(values) // 16) * 16, np.float32)
    out[: len(values)] = values
    return out


if __name__ == "__main__":
    main(*sys.argv[1:])
