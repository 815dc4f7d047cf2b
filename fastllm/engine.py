"""The loop: schedule, step, sample, text. Called by one thread at a time.

`Engine.step` runs one step for the answers and short prompts that are in, and some parts of a pass
over the long prompts; what comes of it goes to the sink of each sequence. Nothing here waits, locks
or knows of threads: `driver.Driver` calls it from a thread of its own, a test by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastllm.config import ModelConfig
from fastllm.errors import ContextLengthError, FastLLMError, KernelError, KVRangeError, RequestError
from fastllm.scheduling.pace import Pace
from fastllm.scheduling.scheduler import Scheduler
from fastllm.sequence import Sequence, batch_of
from fastllm.step.batch import Batch, Pass

# Logits of one step, at most: 64 MiB are 340 rows of a vocabulary of 49,152, enough for a prompt
# chunk to run at full speed, and small beside any model.
MAX_LOGITS_BYTES = 64 << 20
MAX_NUM_SEQS = 64


Scheduled = list[tuple[Sequence, int]]  # who computes how many tokens


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
    num_parts: int

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Return float32[num_rows, vocab_size], valid until the next call."""
        ...

    def begin(self, batch: Batch) -> Pass:
        """Return a pass of `num_parts` parts; others may run between them."""
        ...

    def go_on(self, one: Pass, parts: int) -> NDArray[np.float32] | None:
        """Run parts of a pass; the logits when it is through."""
        ...

    def own_thread(self) -> AbstractContextManager[None]:
        """Inside the block the calling thread does little but step."""
        ...

    def close(self) -> None:
        """Stop the workers and free the memory."""
        ...


@dataclass(frozen=True)
class UnderWay:
    """A pass over long prompts that was begun: whose it is, which logits are whose, since when."""

    scheduled: Scheduled
    rows: list[tuple[int, int]]
    run: Pass
    begun_s: float


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
        self._pace = Pace(runner.max_batch_tokens, runner.num_parts)
        self._under_way: UnderWay | None = None
        self._lost = False  # the last pass ended before it was through
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
        """Run one step and some parts of a pass; False if there was nothing to compute.

        Raises
        ------
        BaseException
            Only what is no `Exception` (a KeyboardInterrupt of who steps by hand): the sequences of
            the step have failed, and the others go on.
        """
        self._sweep()
        for seq in self.scheduler.running:
            seq.look()
        for seq in self.scheduler.waiting:
            if seq.stalled:
                seq.look()
        scheduled = self.scheduler.step(self._pace.beside(self._num_decodes()))
        if scheduled:
            with self._failing(scheduled):
                self._compute(scheduled)
        return self._go_on() or bool(scheduled)

    def forget(self) -> None:
        """Drop the KV cache kept from the last answer, so that the next prompt starts cold."""
        self.scheduler.session.drop()

    def abort(self, error: FastLLMError) -> None:
        """End everybody with an error and start from empty blocks."""
        everybody = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler, self._under_way = self._empty_scheduler(), None
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

    def _num_decodes(self) -> int:
        return sum(seq.decodes and not seq.stalled for seq in self.scheduler.running)

    def _compute(self, scheduled: Scheduled) -> None:
        """Run a whole step."""
        batch, rows = batch_of(scheduled)
        decodes = sum(seq.decodes for seq, _ in scheduled)
        begun = self.clock()
        logits = self.runner.forward(batch)
        now = self.clock()
        self._pace.note_step(decodes, len(batch.token_ids) - decodes, now - begun)
        self._advance(scheduled, rows, logits, begun, now)

    def _go_on(self) -> bool:
        """Run parts of the pass over long prompts; False if there is none."""
        decodes = self._num_decodes()
        one = self._under_way
        if one is not None and not all(seq.in_pass for seq, _ in one.scheduled):
            # Somebody was cancelled or gave way, and the blocks may be another's by now. No
            # sequence has moved, so nothing is lost but time.
            self._end_pass(one, lost=True)
            one = None
        if one is None:
            # After a loss the first job goes alone: whoever comes and goes, it gets on.
            chunk = self._pace.chunk(decodes)
            scheduled = self.scheduler.long_prompts(chunk, first_alone=self._lost)
            if not scheduled:
                return False
            batch, rows = batch_of(scheduled)
            with self._failing(scheduled):
                one = UnderWay(scheduled, rows, self.runner.begin(batch), self.clock())
            self._under_way = one
            if one is None:
                return True
        with self._failing(one.scheduled):
            self._run_parts(one, decodes)
        return True

    def _run_parts(self, one: UnderWay, decodes: int) -> None:
        tokens, before = len(one.run.batch.token_ids), one.run.part
        begun = self.clock()
        try:
            logits = self.runner.go_on(one.run, self._pace.parts(decodes, tokens))
        except BaseException:
            self._end_pass(one, lost=True)
            raise
        now = self.clock()
        done = min(one.run.part, self.runner.num_parts) - before
        self._pace.note_parts(tokens, done, now - begun)
        if logits is not None:
            self._end_pass(one, lost=False)
            self._advance(one.scheduled, one.rows, logits, one.begun_s, now)

    def _end_pass(self, one: UnderWay, *, lost: bool) -> None:
        self._under_way, self._lost = None, lost
        for seq, _ in one.scheduled:
            seq.in_pass = False

    def _advance(
        self,
        scheduled: Scheduled,
        rows: list[tuple[int, int]],
        logits: NDArray[np.float32],
        begun_s: float,
        now_s: float,
    ) -> None:
        """Hand the logits of a batch to its sequences."""
        for (seq, count), (first, last) in zip(scheduled, rows, strict=True):
            seq.started(begun_s)
            try:
                seq.advance(count, logits[first:last], self.max_model_len, now_s)
            except FastLLMError as error:
                self._fail([(seq, count)], error)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this one's alone
                self._fail([(seq, count)], KernelError(f"a token could not be chosen: {error!r}"))
            else:
                if seq.ended:
                    self.scheduler.release(seq, keep=True)
                else:
                    self.scheduler.settle(seq)

    @contextmanager
    def _failing(self, scheduled: Scheduled) -> Iterator[None]:
        """End the sequences of a batch with what goes wrong in it."""
        try:
            yield
        except KVRangeError as error:  # the others are computed again
            self._fail([scheduled[error.sequence]], error)
        except FastLLMError as error:
            self._fail(scheduled, error)
        except BaseException as error:
            # A half-done step leaves nothing of its own that could be trusted.
            self._fail(scheduled, KernelError(f"the step was interrupted by {error!r}; ask again"))
            if not isinstance(error, Exception):
                raise

    def _fail(self, scheduled: Scheduled, error: FastLLMError) -> None:
        """End these with an error; what they computed is not kept."""
        for seq, _ in scheduled:
            if not seq.ended:
                seq.fail(error)
                self.scheduler.release(seq, keep=False)
