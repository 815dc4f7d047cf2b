"""A batch is put where the step finds it: rows in the buffers, words and small arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.cache.kv_cache import BLOCK_SIZE
from fastllm.kernels.words import Context
from fastllm.step.batch import Batch, Pass
from fastllm.step.inputs import Inputs
from fastllm.step.plan import MAX_LOGIT_ROWS


class Stage:
    """Where one pass at a time is; the one that leaves it unfinished keeps its rows.

    The arrays of a batch have fixed addresses, so that a step need not look them up.

    Parameters
    ----------
    context : int64[Context.WORDS]
        The words of a batch are written here.
    inputs : Inputs
    max_tokens, n_ctx : int
    """

    def __init__(
        self, context: NDArray[np.int64], inputs: Inputs, max_tokens: int, n_ctx: int
    ) -> None:
        # Of a memoryview, an item costs a third of one of NumPy's.
        self._context, self._inputs = context.data, inputs
        self._unfinished: Pass | None = None  # whose rows are in the buffers
        self._positions = np.zeros(max_tokens, np.int32)
        self._starts = np.zeros(max_tokens + 1, np.int32)
        self._seqs = np.zeros(max_tokens, np.int32)
        self._logit_rows = np.zeros(max_tokens, np.int32)
        # Rows that nobody uses take no memory.
        self._tables = np.zeros((max_tokens, -(-n_ctx // BLOCK_SIZE)), np.int32)
        self._logit_rows_address = self._logit_rows.ctypes.data
        # Rows of the rope table are positions, unless it holds several regimes of so many rows.
        self._regime_rows = n_ctx if inputs.num_regimes > 1 else 0
        self._rope_rows = self._positions
        if self._regime_rows:
            self._rope_rows = np.zeros(max_tokens, np.int32)
        context[Context.POSITIONS] = self._positions.ctypes.data
        context[Context.SEQ_STARTS] = self._starts.ctypes.data
        context[Context.SEQ_OF_TOKEN] = self._seqs.ctypes.data
        context[Context.ROPE_ROWS] = self._rope_rows.ctypes.data
        context[Context.TABLES] = self._tables.ctypes.data
        context[Context.TABLE_STRIDE] = self._tables.strides[0]

    def enter(self, one: Pass) -> None:
        """Put a pass where the step finds it; keep the rows of the one that is there."""
        other, self._unfinished = self._unfinished, None
        if other is one:
            return
        x = self._inputs.x
        if other is not None:
            other.keep(x[: len(other.batch.token_ids)])
        if one.is_kept:
            x[: len(one.x)], one.is_kept = one.x, False
        else:
            self._inputs.put(one.batch)
        self._put(one.batch)
        c = self._context
        c[Context.NUM_TOKENS] = len(one.batch.token_ids)
        c[Context.NUM_SEQS] = len(one.batch.seq_starts) - 1
        self.ask_rows(0, len(one.batch.logit_rows))

    def stay(self, one: Pass) -> None:
        """Leave an unfinished pass where it is: its rows are good until another one enters."""
        self._unfinished = one

    def ask_rows(self, first: int, stop: int) -> int:
        """Ask for the logits of these rows of the batch, or as many as fit; says how many."""
        count = min(MAX_LOGIT_ROWS, stop - first)
        self._context[Context.NUM_ROWS] = count
        self._context[Context.LOGIT_ROWS] = self._logit_rows_address + 4 * first
        return count

    def sequence_of(self, token: int) -> int:
        """Number of the sequence that a token of the batch belongs to."""
        return int(self._seqs[token])

    def _put(self, batch: Batch) -> None:
        tokens, bounds = len(batch.token_ids), len(batch.seq_starts)
        tables = batch.block_tables[: bounds - 1, : self._tables.shape[1]]
        self._tables[: bounds - 1, : tables.shape[1]] = tables
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
