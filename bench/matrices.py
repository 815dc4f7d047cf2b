"""A packed matrix of any format and size, and its product with some tokens on several threads."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bench.limits import Crew
from fastllm.kernels import ops
from fastllm.kernels.activations import token_bytes
from fastllm.kernels.interpreter_codes import MATMUL_SCRATCH, OP_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.objects import addresses, callable_at
from fastllm.kernels.panels import ROWS
from fastllm.kernels.road import choose_road, wants_prefetch
from fastllm.kernels.words import Context
from fastllm.memory.arena import Arena
from fastllm.quants import BLOCKS, quantize
from fastllm.step.program import Program
from tests.naive.activations import layout_reference
from tests.naive.panels import pack_reference

FLOATS = ("f32", "f16", "bf16")


def native_rows(name: str, columns: int) -> NDArray[np.uint8]:
    """Return 16 native rows: random codes, scales of 0.01 (speed must not depend on denormals)."""
    rng = np.random.default_rng(0)
    if name in FLOATS:
        return quantize(name, rng.standard_normal((ROWS, columns)).astype(np.float32))
    block = BLOCKS[name]
    raw = rng.integers(0, 256, (ROWS, columns // block.elements, block.bytes), np.uint8)
    fields = raw.view(block.record)[..., 0]
    for field in block.record.names or ():
        if block.record[field] == np.dtype("<f2"):
            fields[field] = 0.01
    return raw.reshape(ROWS, -1)


class Product:
    """``y = x @ W.T`` for a matrix in huge pages, all of its panels alike.

    Parameters
    ----------
    name : str
        Weight format.
    rows, columns : int
        Rows are rounded up to whole panels.
    num_tokens : int
    num_threads : int
        Most threads that will share the work.

    Attributes
    ----------
    nbytes : int
        Of the packed matrix.
    operations : int
        A multiplication and an addition for each weight and token.
    """

    def __init__(
        self, name: str, rows: int, columns: int, num_tokens: int, num_threads: int
    ) -> None:
        road, layout = choose_road(), LAYOUTS[name]
        panel = pack_reference(name, native_rows(name, columns))
        self.num_panels = -(-rows // ROWS)
        self.nbytes = panel.nbytes * self.num_panels
        self.operations = 2 * self.num_panels * ROWS * columns * num_tokens
        x = np.random.default_rng(1).standard_normal((num_tokens, columns)).astype(np.float32)
        tiles = layout_reference(layout.activations, x, road.largest_tile)
        ldy = 4 * ROWS * self.num_panels
        scratch = -(-MATMUL_SCRATCH // 4096) * 4096  # of a thread, on pages of its own
        room = num_threads * scratch + 16384  # and for alignment
        self._arena = Arena(self.nbytes + tiles.nbytes + num_tokens * ldy + room)
        w, t, y = (
            self._arena.alloc(size, 64) for size in (self.nbytes, tiles.nbytes, num_tokens * ldy)
        )
        self._arena.view(w, self.nbytes).reshape(self.num_panels, -1)[:] = panel
        self._arena.view(t, tiles.nbytes)[:] = tiles
        unit = f"mm_{name}"
        functions = addresses([unit], road)
        self._call = callable_at(functions[unit], OP_ARGS)
        self._program = Program(functions)
        self._program.add(
            ops.Matmul, function=unit,
            spans=self._program.place(np.array([(0, self.num_panels, w)], np.int64)), num_spans=1,
            num_panels=self.num_panels, panel_bytes=panel.nbytes, units=layout.units(columns),
            tiles=t, token_bytes=token_bytes(layout.activations, columns), out=y, out_stride=ldy,
        )  # fmt: skip
        self._row = self._program.table()
        self._context = np.zeros(Context.WORDS, np.int64)
        self._context[Context.THREADS] = num_threads
        self._context[Context.NUM_TOKENS] = num_tokens
        self._context[Context.PREFETCH] = wants_prefetch()
        self._context[Context.SCRATCH] = self._arena.alloc(num_threads * scratch, 4096)
        self._context[Context.SCRATCH_STRIDE] = scratch

    def __call__(self, threads: Crew, repeats: int = 1) -> None:
        """Multiply; every thread takes its part of the panels, `repeats` times without meeting."""

        def work(thread: int) -> None:
            for _ in range(repeats):
                self._call(self._context.ctypes.data, self._row.ctypes.data, thread)

        threads(work)

    def __enter__(self) -> Product:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._arena.close()
