"""Runner: a loaded model that turns batches into logits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastllm.cache.kv_cache import BLOCK_SIZE, KVCache
from fastllm.errors import KVRangeError, RequestError
from fastllm.forks import Lock
from fastllm.kernels import objects
from fastllm.kernels.interpreter_codes import STEP_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.ops import UNITS
from fastllm.kernels.road import choose_road, wants_prefetch
from fastllm.kernels.words import ROW_WORDS, Context, Failure
from fastllm.machine.cpus import default_threads, usable_cpus
from fastllm.models.bind import bind
from fastllm.models.layers import Decoder
from fastllm.models.rope import short_context
from fastllm.options import LoadOptions
from fastllm.step.batch import Batch, Pass
from fastllm.step.buffers import Buffers, Rows
from fastllm.step.checks import Limits, check
from fastllm.step.crew import Seat
from fastllm.step.inputs import Inputs
from fastllm.step.plan import MAX_LOGIT_ROWS, Plan, areas
from fastllm.step.program import Writer
from fastllm.step.staging import Stage
from fastllm.step.weights import Weights

if TYPE_CHECKING:
    from fastllm.formats.checkpoint import Checkpoint

Progress = Callable[[str, float], None]


class Runner:
    """A model in memory, ready to step.

    Parameters
    ----------
    checkpoint : Checkpoint
    options : LoadOptions, optional
        Threads, context, tokens of a batch, quantization, type of the KV cache.
    num_blocks : int, optional
        KV blocks of 64 tokens; default: enough for one sequence of n_ctx.
    progress : callable, optional
        Called with (what, share done).

    Attributes
    ----------
    config : ModelConfig
    vocab_size, n_ctx, n_threads, block_size, num_blocks, max_batch_tokens : int
    n_ctx_wanted : int
        More than `n_ctx` where no context was asked for and memory is too short for the default.
    short_context : int
        LongRoPE: sequences of up to this many tokens take the short factors, longer ones the long
        ones (``Batch.rope_regimes``); 0 where angles do not depend on the length.
    num_parts : int
        Parts of a pass (`begin`, `go_on`): the layers.
    isa : str
        The road the kernels took.
    load_s : float
        Seconds the constructor took.
    model_bytes : int
        Bytes of the packed weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: LoadOptions | None = None,
        *,
        num_blocks: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        started = time.perf_counter()
        options = options or LoadOptions()
        model = bind(checkpoint)
        decoder = model.decoder
        self.config = decoder.config
        self.vocab_size = decoder.config.vocab_size
        self.n_threads = options.n_threads or default_threads()
        plan = Plan(model, options, self.n_threads)
        self.n_ctx = plan.context(num_blocks)
        self.n_ctx_wanted = options.n_ctx or plan.default_context
        self.kv_type = plan.kv_type
        self.block_size = BLOCK_SIZE
        self.num_blocks = num_blocks or -(-self.n_ctx // BLOCK_SIZE)
        self.max_batch_tokens = options.n_batch
        road = choose_road()
        self.isa = road.name
        formats = [name for name in LAYOUTS if name in plan.formats]
        units = ["step", "pack", "pick", *UNITS, *(f"mm_{name}" for name in formats)]
        functions = objects.addresses(units, road, progress)
        self._weights = Weights(model, functions["pack"], self.n_threads, options.quant)
        self.model_bytes = self._weights.nbytes
        self._cache = KVCache(decoder, self.num_blocks, self.kv_type)
        self._inputs = Inputs(model, self.n_ctx)
        self._limits = Limits(
            self.max_batch_tokens,
            self.vocab_size,
            self.n_ctx,
            self.num_blocks,
            self._inputs.num_regimes,
        )
        self.short_context = short_context(decoder.ropes)
        self._buffers = Buffers(self.max_batch_tokens)
        head = self._weights.matrices[decoder.lm_head.weight]
        self._logits = _aligned_rows(MAX_LOGIT_ROWS, head.padded_rows)
        logits = Rows(self._logits.ctypes.data, self._logits.strides[0])
        ropes = self._inputs.ropes
        writer = Writer(
            decoder, self._weights, self._cache, ropes, self._buffers, functions, logits
        )
        self._prepare(decoder, writer)
        entry = objects.callable_at(functions["step"], STEP_ARGS)
        self._seat = Seat(entry, self._context, self.n_threads, usable_cpus())
        self._lock = Lock()
        self._closed = False
        self._weights.wait(progress)  # read and packed by threads, since they have addresses
        self.load_s = time.perf_counter() - started

    # ------------------------------------------------------------------ setting up
    def _prepare(self, decoder: Decoder, writer: Writer) -> None:
        """Write the program, allocate buffers and fill the context block."""
        widest = max(matrix.columns for matrix in self._weights.matrices.values())
        area = areas(decoder, widest, self.n_ctx, self.max_batch_tokens)
        scratch, raw = area.scratch, self._buffers.raw
        raw("scratch", area.scratch_stride * self.n_threads)
        raw("partials", area.partials_bytes)
        writer.write()
        self._buffers.allocate()
        self._program = writer.write()  # kept: rows point at its tables
        self._head, self._cuts = self._program.head, self._program.cuts
        self.num_parts = len(self._cuts)
        self._ops = self._program.table()
        self._inputs.place(self._buffers)
        context = np.zeros(Context.WORDS, np.int64)
        context[Context.SCRATCH] = raw("scratch", 0)
        context[Context.SCRATCH_STRIDE] = area.scratch_stride
        context[Context.MATMUL_SCRATCH] = scratch["matmul"]
        context[Context.HEAD_SCRATCH] = scratch["head"]
        context[Context.ATTEND_SCRATCH] = scratch["attend"]
        context[Context.SPLIT_TOKENS] = area.split_tokens
        context[Context.PARTIALS] = raw("partials", 0)
        context[Context.MAX_CHUNKS] = area.max_chunks
        context[Context.PREFETCH] = wants_prefetch()
        self._ops_address, self._num_ops = self._ops.ctypes.data, len(self._ops)
        self._stage = Stage(context, self._inputs, self.max_batch_tokens, self.n_ctx)
        self._context = context

    # ------------------------------------------------------------------ stepping
    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Run one batch.

        Parameters
        ----------
        batch : Batch
            At most `max_batch_tokens` tokens, positions below `n_ctx`, block ids below
            `num_blocks`.

        Returns
        -------
        float32[num_logit_rows, vocab_size]
            Valid until the next call.

        Raises
        ------
        RequestError
            A token id, position or block id outside its range.
        ReadError
            The embedding's file was cut short.
        KVRangeError
            A key or value that the KV cache cannot hold; the other sequences of the batch may be
            computed again without the one it names.
        """
        with self._lock.here:
            self._check(batch)
            logits = self._go_on(Pass(batch), self.num_parts)
            assert logits is not None
            return logits

    def own_thread(self) -> AbstractContextManager[None]:
        """Inside the block the calling thread does little but step: it stays on its CPU."""
        return self._seat.own_thread()

    def begin(self, batch: Batch) -> Pass:
        """Return a batch to be run in parts, by `go_on`; others may be run in between.

        Until it is through, the blocks of its sequences belong to it. It may be dropped.

        Raises
        ------
        RequestError
            As `forward`.
        """
        self._check(batch)
        return Pass(batch)

    def go_on(self, one: Pass, parts: int) -> NDArray[np.float32] | None:
        """Run so many more parts of a pass; the bits are those of `forward`.

        Returns
        -------
        float32[num_logit_rows, vocab_size] or None
            The logits, valid until the next call, once it is through.

        Raises
        ------
        ReadError, KVRangeError
            As `forward`; the pass has ended.
        """
        with self._lock.here:
            if self._closed:
                raise RequestError("the model is closed")
            return self._go_on(one, parts)

    def _check(self, batch: Batch) -> None:
        if self._closed:
            raise RequestError("the model is closed")
        check(batch, self._limits)

    def _go_on(self, one: Pass, parts: int) -> NDArray[np.float32] | None:
        self._stage.enter(one)
        rows, first = len(one.batch.logit_rows), self._cuts[one.part]
        one.part += parts
        if one.part < self.num_parts:
            self._run(first, self._cuts[one.part])
            self._stage.stay(one)
            return None
        self._run(first, self._num_ops if rows else self._head)
        return self._logits_of(rows)

    def _logits_of(self, rows: int) -> NDArray[np.float32]:
        """Copy the logits where there are more than the buffer holds: the head again for those."""
        if rows <= MAX_LOGIT_ROWS:
            return self._logits[:rows, : self.vocab_size]
        out = np.empty((rows, self.vocab_size), np.float32)
        out[:MAX_LOGIT_ROWS] = self._logits[:, : self.vocab_size]
        for first in range(MAX_LOGIT_ROWS, rows, MAX_LOGIT_ROWS):
            count = self._stage.ask_rows(first, rows)
            self._run(self._head, self._num_ops)
            out[first : first + count] = self._logits[:count, : self.vocab_size]
        return out

    def _run(self, first: int, end: int) -> None:
        """Run rows of the table; an op that failed has changed only its own sequence's blocks."""
        self._context[Context.OPS] = self._ops_address + first * 8 * ROW_WORDS
        self._context[Context.NUM_OPS] = end - first
        failure = self._seat.run()
        if failure == Failure.NONE:
            return
        token = int(self._context[Context.ERROR_TOKEN])
        raise KVRangeError(
            "a key or value of this model is beyond 65504, more than the KV cache holds in half "
            'precision; load it with kv_type="f32" (--kv-type f32)',
            sequence=self._stage.sequence_of(token),
        )

    def close(self) -> None:
        """Stop the threads and free the memory; the runner is unusable afterwards."""
        with self._lock.here:
            if self._closed:
                return
            self._closed = True
            self._seat.close()
            self._inputs.close()
            self._cache.close()
            self._buffers.close()
            self._weights.close()


def _aligned_rows(rows: int, columns: int) -> NDArray[np.float32]:
    """Zeros on a cache line, in NumPy's own memory: views of it outlive the runner."""
    raw = np.zeros(rows * columns + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + rows * columns].reshape(rows, columns)
