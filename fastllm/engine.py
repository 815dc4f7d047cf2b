"""The loop: schedule, step, sample, text. Many callers, one batch.

`Engine` holds the sequences and the KV blocks; `Engine.wait` is how a caller gets its events. There
is no thread of ours here: of the callers that wait, one drives a step for everybody, and the others
sleep until it is done. So callers from several threads share each pass over the weights, and an
idle engine costs nothing.

A sequence has no phase. It has ``num_computed_tokens``, and every step lets it catch up by some
tokens: a chunk of the prompt, or the one token sampled last (after vLLM's scheduler).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastllm.cache.block_pool import BlockPool
from fastllm.cache.session import Session
from fastllm.config import ModelConfig
from fastllm.errors import ContextLengthError, FastLLMError, KernelError, RequestError
from fastllm.request import Chunk
from fastllm.sequence import Sequence, batch_of
from fastllm.step.batch import Batch

# Logits of one step, at most: 64 MiB are 340 rows of a vocabulary of 49,152, enough for a prompt
# chunk to run at full speed, and small beside any model.
MAX_LOGITS_BYTES = 64 << 20
MAX_NUM_SEQS = 64


class Runner(Protocol):
    """What the engine needs of the step; ``fastllm.step.runner.Runner`` is the real one."""

    config: ModelConfig
    vocab_size: int
    n_ctx: int
    n_threads: int
    block_size: int
    num_blocks: int
    max_batch_tokens: int
    isa: str
    load_s: float
    model_bytes: int
    short_context: int

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Return float32[num_rows, vocab_size], valid until the next call."""
        ...

    def close(self) -> None:
        """Stop the workers and free the memory."""
        ...


class Engine:
    """Runs sequences over one runner, several at a time.

    Parameters
    ----------
    runner : Runner
        Owned by the engine from here on; `close` closes it.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.pool = BlockPool(runner.num_blocks)
        self.max_model_len = min(runner.n_ctx, runner.num_blocks * runner.block_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._max_rows = max(1, MAX_LOGITS_BYTES // (4 * runner.vocab_size))
        self._session = Session(self.pool, runner.block_size)
        self._turn = threading.Condition()
        self._driving = False
        self._closed = False

    # -- called by any thread ------------------------------------------------------------------
    def submit(self, seq: Sequence) -> None:
        """Queue a sequence; its events come from `wait`.

        Raises
        ------
        ContextLengthError
            Prompt and answer cannot fit in the context.
        RequestError
            Empty prompt, a token id outside the vocabulary, or a closed engine.
        """
        self.check(seq)
        with self._turn:
            if self._closed:
                raise RequestError("this LLM is closed; open a new one")
            seq.submitted_s = time.perf_counter()
            self.waiting.append(seq)

    def wait(self, seq: Sequence) -> Chunk:
        """Return the next event of a sequence, driving steps where nobody else does.

        Raises
        ------
        FastLLMError
            What went wrong in this sequence.
        """
        while True:
            with self._turn:
                while self._driving and not seq.chunks and seq.error is None:
                    self._turn.wait()
                if seq.chunks:
                    return seq.chunks.popleft()
                if seq.error is not None:
                    raise seq.error
                if self._closed:
                    raise RequestError("this LLM was closed while it answered")
                self._driving = True
            self._drive()

    def cancel(self, seq: Sequence) -> None:
        """Ask a sequence to end at the next step; safe in a signal handler."""
        seq.cancelled = True

    def forget(self) -> None:
        """Drop the KV cache kept from the last answer, so that the next prompt starts cold."""
        self._exclusively(self._session.drop)

    def close(self) -> None:
        """Finish the step that runs, then close the runner. Idempotent."""

        def close() -> None:
            if not self._closed:
                self._closed = True
                self.runner.close()

        self._exclusively(close)

    def _exclusively(self, action: Callable[[], None]) -> None:
        with self._turn:
            while self._driving:
                self._turn.wait()
            try:
                action()
            finally:
                self._turn.notify_all()

    def _drive(self) -> None:
        try:
            self._step()
        except FastLLMError as error:
            self._abort(error)
        except BaseException as error:
            # Also KeyboardInterrupt: a half-done step leaves nothing that could be trusted.
            self._abort(KernelError(f"the step was interrupted by {error!r}; ask again"))
            raise
        finally:
            with self._turn:
                self._driving = False
                self._turn.notify_all()

    def check(self, seq: Sequence) -> None:
        """Refuse a sequence that can never run; the errors are those of `submit`."""
        if not seq.token_ids:
            raise RequestError("the prompt is empty and the model has no BOS token: give some text")
        low, high = min(seq.token_ids), max(seq.token_ids)
        if low < 0 or high >= self.runner.vocab_size:
            bad = low if low < 0 else high
            raise RequestError(
                f"token id {bad} is outside the vocabulary: allowed are 0 to "
                f"{self.runner.vocab_size - 1}"
            )
        asked = seq.params.max_tokens
        needed = len(seq.token_ids) + (1 if asked is None else asked)
        if needed > self.max_model_len:
            what = f"a prompt of {len(seq.token_ids)} tokens"
            if asked:
                what += f" and an answer of up to {asked} need {needed}"
            raise ContextLengthError(
                f"{what}, but the context holds {self.max_model_len}: shorten it, ask for less, or "
                "load with a larger n_ctx (-c)"
            )

    # -- called by the driver only -------------------------------------------------------------
    def _step(self) -> None:
        scheduled = self._schedule()
        if not scheduled:
            return
        batch, rows = batch_of(scheduled)
        begun = time.perf_counter()
        logits = self.runner.forward(batch)
        now = time.perf_counter()
        for (seq, count), (first, last) in zip(scheduled, rows, strict=True):
            seq.started(begun)
            try:
                seq.advance(count, logits[first:last], self.max_model_len, now)
            except FastLLMError as error:
                seq.error = error
            if seq.finish_reason is not None or seq.error is not None:
                self._release(seq)
            elif seq.rope_regime != self._rope_regime(seq):
                # Its keys were rotated for a shorter sequence: they are computed again.
                self._preempt(seq)

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Return who computes how many tokens now. Decoding sequences first: they wait for one."""
        self._admit()
        budget, rows_left = self.runner.max_batch_tokens, self._max_rows
        scheduled: list[tuple[Sequence, int]] = []
        for seq in sorted(self.running, key=lambda s: s.num_missing > 1):
            if budget == 0 or rows_left == 0:
                break
            if seq not in self.running:  # preempted by one before it in this loop
                continue
            count = min(seq.num_missing, budget)
            if seq.on_rows is not None:
                count = min(count, rows_left)
            if not self._grow(seq, count, scheduled):
                continue
            scheduled.append((seq, count))
            budget -= count
            rows_left -= count if seq.on_rows is not None else 1
        return scheduled

    def _admit(self) -> None:
        """Move cancelled sequences out, and waiting ones in while their prompts fit."""
        with self._turn:
            for seq in [s for s in (*self.running, *self.waiting) if s.cancelled]:
                if seq in self.waiting:
                    self.waiting.remove(seq)
                seq.finish("cancelled", time.perf_counter())
                self._release(seq)
            promised = sum(self._blocks_for(s, len(s.token_ids)) for s in self.running)
            while self.waiting and len(self.running) < MAX_NUM_SEQS:
                seq = self.waiting[0]
                promised += self._blocks_for(seq, len(seq.token_ids))
                if self.running and promised > self.pool.num_free + self._session.num_blocks:
                    break  # Whoever runs will finish and leave room.
                self.running.append(self.waiting.popleft())
                seq.rope_regime = self._rope_regime(seq)
                # Only now: who waits holds no blocks, or those who run could lack them forever.
                if seq.on_rows is None:
                    seq.block_table, common = self._session.take(seq.token_ids, seq.rope_regime)
                    seq.num_computed_tokens = seq.num_cached_tokens = common
                    promised -= len(seq.block_table)

    def _rope_regime(self, seq: Sequence) -> int:
        """Which factors LongRoPE takes at the length a sequence has now: 0 short, 1 long."""
        return int(0 < self.runner.short_context < len(seq.token_ids))

    def _blocks_for(self, seq: Sequence, num_tokens: int) -> int:
        return -(-num_tokens // self.runner.block_size) - len(seq.block_table)

    def _grow(self, seq: Sequence, count: int, scheduled: list[tuple[Sequence, int]]) -> bool:
        """Give `seq` the blocks for `count` more tokens; False if it had to yield its own."""
        needed = self._blocks_for(seq, seq.num_computed_tokens + count)
        if needed > self.pool.num_free:
            self._session.drop()
        while needed > self.pool.num_free:
            # The youngest gives way and computes its tokens again later: the bits are the same.
            busy = [s for s, _ in scheduled]
            victims = [s for s in self.running if s is not seq and s not in busy]
            victim = victims[-1] if victims else seq
            self._preempt(victim)
            if victim is seq:
                return False
        if needed > 0:
            seq.block_table += self.pool.allocate(needed)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.pool.free(seq.block_table)
        seq.block_table = []
        seq.num_computed_tokens = 0
        with self._turn:
            self.waiting.appendleft(seq)

    def _release(self, seq: Sequence) -> None:
        """Take a finished sequence out; its blocks are kept for the next turn if they are sound."""
        if seq in self.running:
            self.running.remove(seq)
        if seq.error is None and seq.on_rows is None and seq.num_computed_tokens:
            computed = seq.token_ids[: seq.num_computed_tokens]
            self._session.keep(computed, seq.block_table, seq.rope_regime)
        else:
            self.pool.free(seq.block_table)
        seq.block_table = []

    def _abort(self, error: FastLLMError) -> None:
        """End everybody with an error and start from empty blocks."""
        with self._turn:
            for seq in (*self.running, *self.waiting):
                seq.error = error
                seq.block_table = []
            self.running.clear()
            self.waiting.clear()
            self.pool = BlockPool(self.runner.num_blocks)
            self._session = Session(self.pool, self.runner.block_size)
