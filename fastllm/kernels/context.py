"""What compiled ops read first: words, the rows of their span, their thread's scratch."""

from __future__ import annotations

from typing import Any

from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import load_i64, store_i64
from fastllm.kernels.words import Context, Op


@compiled
def word(address: int, index: int) -> Any:
    """Word `index` of a context block or an op."""
    return load_i64(address + 8 * index)


@compiled
def num_rows(c: int, op: int) -> Any:
    """Rows of the op's span."""
    return word(c, word(op, Op.SPAN))


@compiled
def num_threads(c: int) -> Any:
    """Threads that run this step."""
    return word(c, Context.THREADS)


@compiled
def scratch_of(c: int, tid: int) -> Any:
    """Address of a thread's scratch; its first part is one padded row."""
    return word(c, Context.SCRATCH) + tid * word(c, Context.SCRATCH_STRIDE)


@compiled
def failed_at(c: int, token: int) -> None:
    """Note the token at which an op is about to fail."""
    store_i64(c + 8 * Context.ERROR_TOKEN, token)
