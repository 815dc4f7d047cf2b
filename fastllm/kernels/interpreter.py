"""The native step: every thread runs the same table of operations, meeting at barriers.

One call runs a whole batch through all layers. An op (``kernels.ops``) splits its work by thread
number: matrices by panels, row-wise ops by tokens (or blocks of columns), attention by (sequence,
kv head, tile or chunk). No op reduces across threads, so results do not depend on their number.

An op that fails does so at one thread; all must leave the table at the same place, or the others
would wait at a barrier for ever. So the word ERROR holds the number of the op, and a thread leaves
only after a barrier that all threads reach after that op: a thread that is already past the barrier
and fails later does not lure the slower ones out too early.

Scratch of a thread (SCRATCH_STRIDE bytes, 64-byte aligned)::

    ROW     one padded row of float32 (norm output, activations)
    MATMUL  scratch of a matrix kernel
    HEAD    two heads, normed or rotated
    ATTEND  scores, a widened page, outputs and states of a tile of queries
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastllm.kernels.context import word
from fastllm.kernels.crew import Gate, begin, end, finish, gate_of, job_done, wait_for_job
from fastllm.kernels.emit import Emitter, Value, i32, i64, kernel
from fastllm.kernels.interpreter_codes import END, GONE, OP_ARGS, WORK
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import I, load_i64, store_i64
from fastllm.kernels.sync import atomic_load_i64, atomic_store_i64, barrier
from fastllm.kernels.words import ROW_WORDS, Context, Op


@kernel(I, *[I] * (OP_ARGS + 1))
def _call(e: Emitter, *values: Value) -> Value:
    """Call an op by address, in Numba's native convention; returns its int64 result."""
    b = e.b
    pointer = ir.IntType(8).as_pointer()
    head = [i64.as_pointer(), pointer.as_pointer()]
    convention = ir.FunctionType(i32, head + [i64] * OP_ARGS)
    function = b.inttoptr(values[0], convention.as_pointer())
    with b.goto_entry_block():
        result, exception = b.alloca(i64), b.alloca(pointer)
    b.call(function, [result, exception, *values[1:]])
    return b.load(result)


@kernel(I)
def _clock(e: Emitter) -> Value:
    return e.call("llvm.readcyclecounter", i64)


@compiled
def _run(c: int, tid: int) -> None:
    threads, area, spin = word(c, Context.THREADS), word(c, Context.SYNC), word(c, Context.SPIN)
    ops, profile = word(c, Context.OPS), word(c, Context.PROFILE)
    error = c + 8 * Context.ERROR
    for i in range(word(c, Context.NUM_OPS)):
        op = ops + i * 8 * ROW_WORDS
        before = _clock() if profile != 0 and tid == 0 else 0
        failure = _call(word(op, Op.FUNCTION), c, op, tid)
        if failure != 0:
            atomic_store_i64(error, (i + 1) << 32 | failure)
        if profile != 0 and tid == 0:
            now = _clock()
            store_i64(profile + 16 * i, load_i64(profile + 16 * i) + now - before)
            before = now
        if word(op, Op.BARRIER) != 0:
            barrier(area, threads, spin)
            failed = atomic_load_i64(error)
            if failed != 0 and failed >> 32 <= i + 1:
                barrier(area, threads, spin)  # until all have read it: the next step clears it
                return
        if profile != 0 and tid == 0:
            place = profile + 16 * i + 8
            store_i64(place, load_i64(place) + _clock() - before)


def step(operation: int, a: int, b: int) -> Any:
    """The function of the unit "step".

    step(RUN, context, crew)   run the batch that the context describes (the caller is thread 0);
                               returns 0, the `Failure` that ended it, or GONE
    step(WORK, crew, worker)   a worker's life: one step per job, until the crew ends
    step(END, crew, 0)         let the workers return
    """
    if operation == WORK:
        gate = gate_of(a, b)
        while True:
            c = wait_for_job(a, gate)
            if c == 0:
                return 0
            _run(c, load_i64(gate + Gate.TID))
            job_done(gate)
    if operation == END:
        end(a)
        return 0
    threads = word(a, Context.THREADS)
    store_i64(a + 8 * Context.ERROR, 0)
    if begin(b, a, threads) == 0:
        return GONE
    _run(a, 0)
    finish(b, a, threads, word(a, Context.SPIN))
    return atomic_load_i64(a + 8 * Context.ERROR) & 0xFFFFFFFF
