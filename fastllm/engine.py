"""The loop: schedule, step, sample, text. Called by one thread at a time.

`Engine.step` runs one step for everybody who is in; what comes of it goes to the sink of each
sequence. Nothing here waits, locks or knows of threads: `driver.Driver` calls it from a thread of
its own, a test by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastllm.config import ModelConfig
from fastllm.errors import ContextLengthError, FastLLMError, KernelError, KVRangeError, RequestError
from fastllm.scheduling.pace import Pace
from fastllm.scheduling.scheduler import Scheduler
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
    n_ctx_wanted: int
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
    clock : callable
        Seconds; what sequences are timed and prompts paced by.

    Attributes
    ----------
    scheduler : Scheduler
        Who runs and who waits.
    """

    def __init__(self, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self.runner = runner
        self.max_model_len = min(runner.n_ctx, runner.num_blocks * runner.block_size)
        self.clock = clock
        self._pace = Pace(runner.max_batch_tokens)
        self._unwanted = False
        self.scheduler = self._empty_scheduler()

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

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that passed `check`."""
        seq.submitted_s = seq.submitted_s or self.clock()
        self.scheduler.add(seq)

    def look_at_all(self) -> None:
        """Have the next step look for cancelled ones among those that wait, too."""
        self._unwanted = True

    def step(self) -> bool:
        """Run one step; False if there was nothing to compute.

        Raises
        ------
        BaseException
            Only what is no `Exception` (a KeyboardInterrupt of who steps by hand): the sequences of
            the step have failed, and the others go on.
        """
        self._sweep()
        running = self.scheduler.running
        for seq in running:
            seq.look()
        for seq in self.scheduler.waiting:
            if seq.stalled:
                seq.look()
        decodes = sum(seq.decodes and not seq.stalled for seq in running)
        scheduled = self.scheduler.schedule(self._pace.beside(decodes), self._pace.alone())
        if not scheduled:
            return False
        try:
            self._compute(scheduled)
        except KVRangeError as error:  # the others are computed again, by the next step
            self._fail([scheduled[error.sequence]], error)
        except FastLLMError as error:
            self._fail(scheduled, error)
        except BaseException as error:
            # A half-done step leaves nothing of its own that could be trusted.
            self._fail(scheduled, KernelError(f"the step was interrupted by {error!r}; ask again"))
            if not isinstance(error, Exception):
                raise
        return True

    def forget(self) -> None:
        """Drop the KV cache kept from the last answer, so that the next prompt starts cold."""
        self.scheduler.session.drop()

    def abort(self, error: FastLLMError) -> None:
        """End everybody with an error and start from empty blocks."""
        everybody = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler = self._empty_scheduler()
        for seq in everybody:
            if not seq.ended:
                seq.fail(error)

    # -- inside --------------------------------------------------------------------------------
    def _empty_scheduler(self) -> Scheduler[Sequence]:
        runner = self.runner
        return Scheduler(
            runner.num_blocks,
            runner.block_size,
            runner.max_batch_tokens,
            max(1, MAX_LOGITS_BYTES // (4 * runner.vocab_size)),
            MAX_NUM_SEQS,
            runner.short_context,
        )

    def _sweep(self) -> None:
        """Take out who was cancelled; of those that wait only when asked to look."""
        now = self.clock()
        over = [seq for seq in self.scheduler.running if seq.unwanted(now)]
        if self._unwanted or len(self.scheduler.waiting) <= MAX_NUM_SEQS:
            self._unwanted = False
            over += [seq for seq in self.scheduler.waiting if seq.unwanted(now)]
        for seq in over:
            seq.finish("cancelled", now)
            self.scheduler.release(seq, keep=True)

    def _compute(self, scheduled: list[tuple[Sequence, int]]) -> None:
        batch, rows = batch_of(scheduled)
        decodes = sum(seq.decodes for seq, _ in scheduled)
        begun = self.clock()
        logits = self.runner.forward(batch)
        now = self.clock()
        self._pace.note(decodes, len(batch.token_ids) - decodes, now - begun)
        for (seq, count), (first, last) in zip(scheduled, rows, strict=True):
            seq.started(begun)
            try:
                seq.advance(count, logits[first:last], self.max_model_len, now)
            except FastLLMError as error:
                self._fail([(seq, count)], error)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this one's alone
                self._fail([(seq, count)], KernelError(f"a token could not be chosen: {error!r}"))
            else:
                if seq.ended:
                    self.scheduler.release(seq, keep=True)
                else:
                    self.scheduler.settle(seq)

    def _fail(self, scheduled: list[tuple[Sequence, int]], error: FastLLMError) -> None:
        """End these with an error; what they computed is not kept."""
        for seq, _ in scheduled:
            if not seq.ended:
                seq.fail(error)
                self.scheduler.release(seq, keep=False)
