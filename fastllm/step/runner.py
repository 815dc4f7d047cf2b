"""Runner: a loaded model that turns batches into logits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastllm.cache.kv_cache import BLOCK_SIZE, KVCache
from fastllm.errors import KVRangeError, RequestError
from fastllm.kernels import objects
from fastllm.kernels.interpreter_codes import (
    PACK_ARGS,
    STEP_ARGS,
)
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.ops import UNITS
from fastllm.kernels.road import choose_road, wants_prefetch
from fastllm.kernels.words import ROW_WORDS, Context, Failure
from fastllm.machine.cpus import default_threads, usable_cpus
from fastllm.models.bind import bind
from fastllm.models.rope import short_context
from fastllm.options import LoadOptions
from fastllm.step.batch import Batch, Pass
from fastllm.step.buffers import Buffers, Rows
from fastllm.step.crew import Seat
from fastllm.step.embedding import RowReader
from fastllm.step.plan import MAX_LOGIT_ROWS, Plan, areas, num_regimes, rotations
from fastllm.step.program import Writer
from fastllm.step.rope_table import RopeTable
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
        self._weights = Weights(
            model, objects.callable_at(functions["pack"], PACK_ARGS), options.quant, progress
        )
        self.model_bytes = self._weights.nbytes
        self._cache = KVCache(decoder, self.num_blocks, self.kv_type)
        self._embed = RowReader(model.matrix(decoder.embed.weight))
        self._positions = (
            RowReader(model.matrix(decoder.positions.weight), 0) if decoder.positions else None
        )
        self.short_context = short_context(decoder.ropes)
        self._num_regimes = num_regimes(decoder, self.n_ctx)
        self._ropes = {
            (rope, style): RopeTable(decoder.ropes[rope], style, self.n_ctx, self._num_regimes)
            for rope, style in rotations(decoder)
        }
        self._decoder = decoder
        self._buffers = Buffers(self.max_batch_tokens)
        head = self._weights.matrices[decoder.lm_head.weight]
        self._logits = _aligned_rows(MAX_LOGIT_ROWS, head.padded_rows)
        logits = Rows(self._logits.ctypes.data, self._logits.strides[0])
        writer = Writer(
            decoder, self._weights, self._cache, self._ropes, self._buffers, functions, logits
        )
        self._prepare(writer)
        entry = objects.callable_at(functions["step"], STEP_ARGS)
        self._seat = Seat(entry, self._context, self.n_threads, usable_cpus())
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._closed = False
        self.load_s = time.perf_counter() - started

    # ------------------------------------------------------------------ setting up
    def _prepare(self, writer: Writer) -> None:
        """Write the program, allocate buffers and fill the context block."""
        decoder = self._decoder
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
        self._under_way: Pass | None = None  # whose rows are in the buffers, to be gone on with
        self._ops = self._program.table()
        hidden = decoder.config.hidden_size
        self._x = _float_rows(self._buffers, "x", self._buffers.rows("x", hidden).stride)
        self._embedded = self._x
        if decoder.project_in is not None:
            width = writer.matrix(decoder.project_in).columns
            rows = self._buffers.rows("embedded", width)
            self._embedded = _float_rows(self._buffers, "embedded", rows.stride)
        if decoder.positions is not None:
            rows = self._buffers.rows("positions", hidden)
            self._position_rows = _float_rows(self._buffers, "positions", rows.stride)
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
        self._stage = _Stage(
            self.max_batch_tokens, context, self.n_ctx if self._num_regimes > 1 else 0
        )
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
        with self._own_lock():
            self._check(batch)
            logits = self._go_on(Pass(batch), self.num_parts)
            assert logits is not None
            return logits

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
        with self._own_lock():
            if self._closed:
                raise RequestError("the model is closed")
            return self._go_on(one, parts)

    def _own_lock(self) -> threading.Lock:
        """The lock of this process: in a forked child, who held it stayed with the parent."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
        return self._lock

    def _go_on(self, one: Pass, parts: int) -> NDArray[np.float32] | None:
        if self._under_way is not one:
            self._take_in(one)
        self._under_way = None  # unless it comes to the end of these parts, and not of all
        c, rows = self._context, len(one.batch.logit_rows)
        first = self._cuts[one.part]
        one.part += parts
        through = one.part >= self.num_parts
        whole = self._num_ops if rows else self._head
        end = whole if through else self._cuts[one.part]
        c[Context.OPS] = self._ops_address + first * 8 * ROW_WORDS
        c[Context.NUM_OPS] = end - first
        self._run()
        if through:
            return self._logits_of(rows)
        self._under_way = one
        return None

    def _take_in(self, one: Pass) -> None:
        """Put a batch into the buffers and the context; keep the rows of the one that is there."""
        other = self._under_way
        if other is not None:
            other.x = self._x[: len(other.batch.token_ids)].copy()
        batch, c, stage = one.batch, self._context, self._stage
        if one.x is None:
            self._embed_tokens(batch)
        else:
            self._x[: len(one.x)] = one.x
            one.x = None
        c[Context.NUM_TOKENS] = stage.put(batch)
        c[Context.NUM_SEQS] = len(batch.seq_starts) - 1
        c[Context.TABLES] = one.tables.__array_interface__["data"][0]
        c[Context.TABLE_STRIDE] = one.tables.strides[0]
        c[Context.NUM_ROWS] = min(len(batch.logit_rows), MAX_LOGIT_ROWS)
        c[Context.LOGIT_ROWS] = stage.logit_rows_address

    def _logits_of(self, rows: int) -> NDArray[np.float32]:
        c, stage = self._context, self._stage
        if rows <= MAX_LOGIT_ROWS:
            return self._logits[:rows, : self.vocab_size]
        # more rows than the buffer: the head again for each further group of rows
        out = np.empty((rows, self.vocab_size), np.float32)
        out[:MAX_LOGIT_ROWS] = self._logits[:, : self.vocab_size]
        c[Context.OPS] = self._ops_address + self._head * 8 * ROW_WORDS
        c[Context.NUM_OPS] = self._num_ops - self._head
        for start in range(MAX_LOGIT_ROWS, rows, MAX_LOGIT_ROWS):
            count = min(MAX_LOGIT_ROWS, rows - start)
            c[Context.NUM_ROWS] = count
            c[Context.LOGIT_ROWS] = stage.logit_rows_address + 4 * start
            self._run()
            out[start : start + count] = self._logits[:count, : self.vocab_size]
        return out

    def _run(self) -> None:
        """Run the table; an op that failed has changed nothing but its own sequence's blocks."""
        failure = self._seat.run()
        if failure == Failure.NONE:
            return
        token = int(self._context[Context.ERROR_TOKEN])
        raise KVRangeError(
            "a key or value of this model is beyond 65504, more than the KV cache holds in half "
            'precision; load it with kv_type="f32" (--kv-type f32)',
            sequence=self._stage.sequence_of(token),
        )

    def _embed_tokens(self, batch: Batch) -> None:
        """Put the tokens' embeddings where the step begins, and have the angles they need."""
        tokens, decoder = len(batch.token_ids), self._decoder
        embedded, scale = self._embed.read(batch.token_ids), np.float32(decoder.embed_scale)
        target = self._embedded[:tokens, : embedded.shape[1]]
        if scale == 1.0:
            target[:] = embedded
        else:
            np.multiply(embedded, scale, out=target)
        if self._positions is not None:
            values = self._positions.read(batch.positions + np.int32(decoder.position_offset))
            self._position_rows[:tokens, : values.shape[1]] = values
        if self._ropes:
            self._have_angles(batch)

    def _have_angles(self, batch: Batch) -> None:
        """Compute the rows of the rope tables that a batch needs, where they are not there yet."""
        if self._num_regimes == 1 or batch.rope_regimes is None:
            lasts = {0: int(batch.positions.max()) + 1}
        else:
            ends = batch.positions[batch.seq_starts[1:] - 1] + 1
            lasts = {
                regime: int(ends[batch.rope_regimes == regime].max(initial=0))
                for regime in range(self._num_regimes)
            }
        for table in self._ropes.values():
            for regime, last in lasts.items():
                if table.filled[regime] < last:
                    table.ensure(last, regime)

    def _check(self, batch: Batch) -> None:
        """Refuse what would make the kernels read or write outside their memory."""
        tokens, starts = len(batch.token_ids), batch.seq_starts.tolist()
        if self._closed:
            raise RequestError("the model is closed")
        _check_shapes(batch)
        if not 0 < tokens <= self.max_batch_tokens:
            raise RequestError(f"a batch of {tokens} tokens; at most {self.max_batch_tokens}")
        _check_range("token id", batch.token_ids, self.vocab_size)
        _check_range("position", batch.positions, self.n_ctx)
        _check_range("logit row", batch.logit_rows, tokens)
        if batch.rope_regimes is not None:
            _check_range("rope regime", batch.rope_regimes, self._num_regimes)
        if starts[0] != 0 or starts[-1] != tokens or len(batch.positions) != tokens:
            raise RequestError("seq_starts and positions do not cover the batch's tokens")
        for s, (first, end) in enumerate(pairwise(starts)):
            if first >= end:
                raise RequestError(f"sequence {s} of the batch has no tokens")
            used = int(batch.positions[end - 1]) // BLOCK_SIZE + 1
            table = batch.block_tables[s, :used]
            if len(table) != used:
                raise RequestError(f"the block table of sequence {s} is too short")
            _check_range("block id", table, self.num_blocks)
            if end - first > 1 and (np.diff(batch.positions[first:end]) != 1).any():
                raise RequestError(f"positions of sequence {s} are not consecutive")

    def close(self) -> None:
        """Stop the threads and free the memory; the runner is unusable afterwards."""
        with self._own_lock():
            if self._closed:
                return
            self._closed = True
            self._seat.close()
            self._embed.close()
            if self._positions is not None:
                self._positions.close()
            del self._x, self._embedded
            for table in self._ropes.values():
                table.close()
            self._cache.close()
            self._buffers.close()
            self._weights.close()


class _Stage:
    """The arrays of a batch at fixed addresses, so that a step need not look them up."""

    def __init__(self, max_tokens: int, context: NDArray[np.int64], regime_rows: int) -> None:
        self._positions = np.zeros(max_tokens, np.int32)
        self._starts = np.zeros(max_tokens + 1, np.int32)
        self._seqs = np.zeros(max_tokens, np.int32)
        self._logit_rows = np.zeros(max_tokens, np.int32)
        self.logit_rows_address = self._logit_rows.ctypes.data
        context[Context.POSITIONS] = self._positions.ctypes.data
        context[Context.SEQ_STARTS] = self._starts.ctypes.data
        context[Context.SEQ_OF_TOKEN] = self._seqs.ctypes.data
        # Rows of the rope table are positions, unless it holds several regimes of so many rows.
        self._regime_rows = regime_rows
        self._rope_rows = np.zeros(max_tokens, np.int32) if regime_rows else self._positions
        context[Context.ROPE_ROWS] = self._rope_rows.ctypes.data

    def sequence_of(self, token: int) -> int:
        """Number of the sequence that a token of the batch belongs to."""
        return int(self._seqs[token])

    def put(self, batch: Batch) -> int:
        """Copy a batch; the number of its tokens."""
        tokens, bounds = len(batch.token_ids), len(batch.seq_starts)
        self._positions[:tokens] = batch.positions
        self._starts[:bounds] = batch.seq_starts
        self._logit_rows[: len(batch.logit_rows)] = batch.logit_rows
        if bounds == 2:
            self._seqs[:tokens] = 0
        else:
            self._seqs[:tokens] = np.repeat(np.arange(bounds - 1), np.diff(batch.seq_starts))
        if self._regime_rows:
            self._rope_rows[:tokens] = batch.positions
            if batch.rope_regimes is not None:
                regimes = batch.rope_regimes[self._seqs[:tokens]]
                self._rope_rows[:tokens] += regimes * np.int32(self._regime_rows)
        return tokens


def _check_shapes(batch: Batch) -> None:
    for name in ("token_ids", "positions", "seq_starts", "logit_rows", "block_tables"):
        array = getattr(batch, name)
        if array.dtype != np.int32 or array.ndim != (2 if name == "block_tables" else 1):
            raise RequestError(f"{name} of a batch must be int32, as `Batch` describes it")
    seqs = len(batch.seq_starts) - 1
    regimes = batch.rope_regimes
    if regimes is not None and (regimes.dtype != np.int32 or regimes.shape != (seqs,)):
        raise RequestError("rope_regimes of a batch must be int32, one for each sequence")
    if seqs < 1 or len(batch.block_tables) < seqs:
        tables = len(batch.block_tables)
        raise RequestError(f"a batch of {seqs} sequences and {tables} block tables")
    if len(batch.logit_rows) > len(batch.token_ids):
        raise RequestError("a batch asks for more logit rows than it has tokens")


def _aligned_rows(rows: int, columns: int) -> NDArray[np.float32]:
    """Zeros on a cache line, in NumPy's own memory: views of it outlive the runner."""
    raw = np.zeros(rows * columns + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + rows * columns].reshape(rows, columns)


def _check_range(name: str, values: NDArray[np.int32], stop: int) -> None:
    if len(values) == 1:  # decoding: an int costs less than two reductions
        value = int(values[0])
        inside = 0 <= value < stop
    else:
        inside = not len(values) or bool(values.min() >= 0 and values.max() < stop)
    if not inside:
        raise RequestError(f"{name} outside 0..{stop - 1}")


def _float_rows(buffers: Buffers, name: str, stride: int) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = buffers.view_bytes(name).view(np.float32)
    return rows.reshape(-1, stride // 4)
