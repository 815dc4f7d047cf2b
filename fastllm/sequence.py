"""Sequence: one request on its way through the engine, from token ids to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FastLLMError
from fastllm.request import Chunk, FinishReason, SamplingParams, Timings, TokenLogprob
from fastllm.sampling.logprobs import token_logprob
from fastllm.sampling.sampler import Sampler
from fastllm.sampling.stop import StopMatcher
from fastllm.scheduling.job import Job
from fastllm.step.batch import Batch

# Takes the position of the first row and float32[n, vocab_size]; must copy what it keeps.
OnRows = Callable[[int, NDArray[np.float32]], None]


class Detokenizer(Protocol):
    """Token ids to text, piece by piece; ``tokenizer.detokenize.StreamDetokenizer`` is one."""

    def put(self, token_id: int) -> str:
        """Return the text that this token completes."""
        ...

    def finish(self) -> str:
        """Return what is left, with replacement characters for half ones."""
        ...


class Sink(Protocol):
    """Where the events of a sequence go; called by whoever drives the engine, never blocking."""

    @property
    def full(self) -> bool:
        """True while enough lies here that nobody took: the sequence computes no further."""
        ...

    def put(self, event: Chunk | FastLLMError) -> None:
        """Take a piece of the answer, or why there is none."""
        ...


class Sequence(Job):
    """One request: a `Job` with what turns its logits into text.

    Parameters
    ----------
    prompt_token_ids : iterable of int
    params : SamplingParams
    sink : Sink
        Gets every chunk; the last event has a finish reason or is an error.
    eos_token_ids : iterable of int
        Tokens that end the answer.
    detokenizer : Detokenizer or None
        None: the answer has token ids and no text.
    on_rows : callable or None
        Called with the logits of every position, in order and once each.

    Attributes
    ----------
    cancelled : bool
        Set by anybody; the engine ends it at its next step.
    owner : callable
        Returns None once nobody can ask for the answer any more (a weak reference), which ends it
        like `cancelled`.
    deadline_s : float or None
        When it is cancelled, on the clock of the engine.
    finish_reason : str or None
        Set once it has ended, with `failed` for an error.
    """

    def __init__(
        self,
        prompt_token_ids: Iterable[int],
        params: SamplingParams,
        sink: Sink,
        *,
        eos_token_ids: Iterable[int] = (),
        detokenizer: Detokenizer | None = None,
        on_rows: OnRows | None = None,
    ) -> None:
        super().__init__(prompt_token_ids, all_rows=on_rows is not None)
        self.params = params
        self.on_rows = on_rows
        self.sink = sink
        self.cancelled = False
        self.owner: Callable[[], object] = bool  # somebody
        self.deadline_s: float | None = None
        self.finish_reason: FinishReason | None = None
        self.failed = False
        self.submitted_s = 0.0
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._sampler = Sampler(params, self.token_ids)
        self._detokenizer = detokenizer
        self._stop = StopMatcher(params.stop)
        self._rows_seen = 0
        self._started_s = 0.0
        self._first_token_s = 0.0

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    def started(self, now_s: float) -> None:
        """Note the first time that it takes part in a step."""
        self._started_s = self._started_s or now_s

    def advance(
        self, count: int, logits: NDArray[np.float32], max_model_len: int, now_s: float
    ) -> None:
        """Take the result of a step that computed `count` more tokens of this sequence.

        Parameters
        ----------
        logits : float32[num_rows, vocab_size]
            All rows for a sequence with `on_rows`, else the last token's, or none before that.

        Raises
        ------
        FormatError
            The logits hold NaN.
        """
        first = self.num_computed_tokens
        self.num_computed_tokens += count
        if self.on_rows is not None and self.num_computed_tokens > self._rows_seen:
            # After a preemption positions come again: show only the new ones.
            new = max(first, self._rows_seen)
            self._rows_seen = self.num_computed_tokens
            self.on_rows(new, logits[new - first :])
        if self.num_missing > 0:
            return
        self._first_token_s = self._first_token_s or now_s
        if self.params.max_tokens == 0:
            self.finish("length", now_s)
            return
        self._sample(logits[-1], max_model_len, now_s)

    def _sample(self, row: NDArray[np.float32], max_model_len: int, now_s: float) -> None:
        token_id = self._sampler.sample(row)
        if token_id in self._eos:
            self.finish("stop", now_s)
            return
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.params.logprobs is not None:
            logprobs = (token_logprob(row, token_id, self.params.logprobs),)
        self.token_ids.append(token_id)
        text = self._stop.push(self._detokenizer.put(token_id)) if self._detokenizer else ""
        if self._stop.stopped:
            self.finish("stop", now_s, text, (token_id,), logprobs)
        elif (
            self.num_completion_tokens == self.params.max_tokens
            or len(self.token_ids) >= max_model_len
        ):
            self.finish("length", now_s, text, (token_id,), logprobs)
        else:
            self.sink.put(Chunk(text, (token_id,), None, logprobs))

    def finish(
        self,
        reason: FinishReason,
        now_s: float,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """End the answer with one last chunk, which carries the text held back and the timings."""
        if not self._stop.stopped:
            if self._detokenizer is not None:
                text += self._stop.push(self._detokenizer.finish())
            if not self._stop.stopped:
                text += self._stop.finish()
        if self._stop.stopped and reason != "cancelled":
            reason = "stop"
        self.finish_reason = reason
        self.sink.put(Chunk(text, token_ids, reason, logprobs, self._timings(now_s)))

    def fail(self, error: FastLLMError) -> None:
        """End the answer with an error."""
        self.failed = True
        self.sink.put(error)

    @property
    def ended(self) -> bool:
        """True after the last event."""
        return self.failed or self.finish_reason is not None

    def unwanted(self, now_s: float) -> bool:
        """True when it was cancelled, is late, or nobody is left who could ask for it."""
        return (
            self.cancelled
            or self.owner() is None
            or (self.deadline_s is not None and now_s >= self.deadline_s)
        )

    def look(self) -> None:
        """Stall while its sink is full."""
        if self.sink.full:
            self.stalled = True
            # Who takes an event afterwards sees the flag and wakes the engine; who did before it
            # was set made room.
            if not self.sink.full:
                self.stalled = False
        else:
            self.stalled = False

    def _timings(self, now_s: float) -> Timings:
        started = self._started_s or now_s
        first = self._first_token_s or now_s
        return Timings(
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached_tokens,
            completion_tokens=self.num_completion_tokens,
            queue_s=started - self.submitted_s,
            prompt_s=first - started,
            decode_s=now_s - first,
            ttft_s=first - self.submitted_s,
        )


def batch_of(scheduled: list[tuple[Sequence, int]]) -> tuple[Batch, list[tuple[int, int]]]:
    """Return the arrays of a step, and each sequence's range of logit rows.

    Parameters
    ----------
    scheduled : list of (Sequence, int)
        Who computes how many of its tokens; not empty, and their blocks are there.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    seq_starts = [0]
    logit_rows: list[int] = []
    ranges: list[tuple[int, int]] = []
    width = max(len(seq.block_table) for seq, _ in scheduled)
    tables = np.zeros((len(scheduled), width), np.int32)
    regimes = [seq.rope_regime for seq, _ in scheduled]
    for i, (seq, count) in enumerate(scheduled):
        start, end = seq.num_computed_tokens, seq.num_computed_tokens + count
        first_row = len(logit_rows)
        if seq.on_rows is not None:
            logit_rows += range(len(token_ids), len(token_ids) + count)
        elif end == len(seq.token_ids):
            logit_rows.append(len(token_ids) + count - 1)
        ranges.append((first_row, len(logit_rows)))
        token_ids += seq.token_ids[start:end]
        positions += range(start, end)
        seq_starts.append(len(token_ids))
        tables[i, : len(seq.block_table)] = seq.block_table
    batch = Batch(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        seq_starts=np.array(seq_starts, np.int32),
        block_tables=tables,
        logit_rows=np.array(logit_rows, np.int32),
        rope_regimes=np.array(regimes, np.int32) if any(regimes) else None,
    )
    return batch, ranges
