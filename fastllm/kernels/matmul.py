"""The matrix product of one weight format: ``y[token][row] (+)= W[row] . x[token] (+ bias[row])``.

One object file holds one format. Work is split by panels: a thread walks its own panels once for
every block of tokens, reading each panel as one linear stream. On the road amx, tokens go through
tiles sixteen at a time as far as they fill them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastllm.kernels import amx
from fastllm.kernels.dot import dot_generator
from fastllm.kernels.emit import Emitter, Value, kernel
from fastllm.kernels.interpreter_codes import SCALES_BYTES, TOKEN_BLOCK
from fastllm.kernels.jit import compiled
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.memory import I, N, add16, load16, store16
from fastllm.kernels.target import HAS_TILE_REGISTERS, LARGEST_TILE
from fastllm.kernels.tiles import tile_size

# One token waits for memory. Intel's prefetchers stop where a stream is mixed with arithmetic (70
# to 75 % of the read rate for q4_1, q4_k, q6_k on Sapphire Rapids); asking 2 KiB ahead brings 93
# to 104 %. On Zen 4 the same request costs a third, so the caller decides (`prefetch`).
AHEAD = 2048


def _nothing(_e: Emitter, *_args: Value) -> None:
    """Emit nothing: what only roads with tile registers do."""


@kernel(N, I)
def _expect(e: Emitter, a: Value) -> None:
    """Ask for a line that will be written."""
    e.prefetch(a, 0, 3, write=True)


@compiled
def _finish(out: int, y: int, ldy: int, tokens: int, bias: int, add: int) -> None:
    for t in range(tokens):
        v = load16(out + 64 * t)
        if bias != 0:
            v = add16(v, load16(bias))
        if add != 0:
            v = add16(load16(y + t * ldy), v)
        store16(y + t * ldy, v)


def matmul(name: str) -> Callable[..., Any]:
    """Return the product of weight format `name`; ``kernels.ops.matmul`` shares it out.

    Its arguments, all int64: panels (address), panel_bytes, units, x (tiles), token_bytes,
    num_tokens, y (float32, address), ldy (bytes between tokens), first and last panel, bias
    (address of float32 rows, or 0), add (1: add to y), prefetch (1: ask memory ahead at one token),
    scratch (MATMUL_SCRATCH bytes, 64-byte aligned). Rows of y are padded to 16.
    """
    in_registers = HAS_TILE_REGISTERS and LAYOUTS[name].activations != "f32"
    generators = {
        size: dot_generator(name, size)
        for size in (1 << n for n in range(LARGEST_TILE.bit_length()))
        if not (in_registers and size == amx.TOKENS)
    }

    @kernel(N, I, I, I, I, I, I)
    def dot(
        e: Emitter, size: Value, w: Value, x: Value, out: Value, units: Value, scratch: Value
    ) -> None:
        """A panel times a tile of `size` tokens."""
        args = (e, w, x, out, units, scratch)
        e.switch(size, {n: partial(generate, *args) for n, generate in generators.items()})

    dot_ahead = kernel(N, I, I, I, I, I)(dot_generator(name, 1, AHEAD))
    # where there are no tile registers no batch fills one
    register = amx.TOKENS if in_registers else 1 << 30
    configure = kernel(N, I)(amx.configure(name) if in_registers else _nothing)
    release = kernel(N)(amx.release if in_registers else _nothing)
    dot_registers = kernel(N, I, I, I, I, I, I, I)(
        amx.tiles_generator(name) if in_registers else _nothing
    )

    def product(
        panels: int,
        panel_bytes: int,
        units: int,
        x: int,
        token_bytes: int,
        num_tokens: int,
        y: int,
        ldy: int,
        first: int,
        last: int,
        bias: int,
        add: int,
        prefetch: int,
        scratch: int,
    ) -> None:
        out = scratch + SCALES_BYTES
        registers = out + 64 * TOKEN_BLOCK
        whole = num_tokens // register * register
        if whole > 0:
            configure(registers)
        for begin in range(0, num_tokens, TOKEN_BLOCK):
            end = min(num_tokens, begin + TOKEN_BLOCK)
            for p in range(first, last):
                w = panels + p * panel_bytes
                b = bias + 64 * p if bias != 0 else 0
                t = begin
                if num_tokens > 1:
                    # one line of each token's row: have them on their way before they are written
                    for k in range(begin, end):
                        _expect(y + k * ldy + 64 * p)
                if begin < whole:
                    n = min(whole, end) - begin
                    a = x + t * token_bytes
                    dot_registers(w, a, out, n // register, token_bytes, units, registers)
                    _finish(out, y + t * ldy + 64 * p, ldy, n, b, add)
                    t += n
                while t < end:
                    a = x + t * token_bytes
                    n = tile_size(num_tokens, t, LARGEST_TILE)
                    if num_tokens == 1 and prefetch != 0:
                        dot_ahead(w, a, out, units, scratch)
                    else:
                        dot(n, w, a, out, units, scratch)
                    _finish(out, y + t * ldy + 64 * p, ldy, n, b, add)
                    t += n
        if whole > 0:
            release()

    return product
