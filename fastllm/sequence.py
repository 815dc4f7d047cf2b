"""Sequence: one request on its way through the engine, from token ids to text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FastLLMError
from fastllm.request import Chunk, FinishReason, SamplingParams, Timings, TokenLogprob
from fastllm.sampling.logprobs import token_logprob
from fastllm.sampling.sampler import Sampler
from fastllm.sampling.stop import StopMatcher
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


class Sequence:
    """The state of one request.

    Parameters
    ----------
    prompt_token_ids : iterable of int
    params : SamplingParams
    eos_token_ids : iterable of int
        Tokens that end the answer.
    detokenizer : Detokenizer or None
        None: the answer has token ids and no text.
    on_rows : callable or None
        Called with the logits of every position, in order and once each.

    Attributes
    ----------
    token_ids : list of int
        Prompt and answer so far.
    num_computed_tokens : int
        Of these, how many are in the KV cache.
    num_cached_tokens : int
        Of the prompt, how many were there before this request began.
    block_table : list of int
        Its KV blocks, in order of position.
    rope_regime : int
        LongRoPE: 0 where they were computed with the short factors, 1 with the long ones.
    chunks : deque of Chunk
        Events not yet taken by the caller.
    error : FastLLMError or None
        Why it failed.
    cancelled : bool
        Set by anybody; the engine ends it at its next step.
    """

    def __init__(
        self,
        prompt_token_ids: Iterable[int],
        params: SamplingParams,
        *,
        eos_token_ids: Iterable[int] = (),
        detokenizer: Detokenizer | None = None,
        on_rows: OnRows | None = None,
    ) -> None:
        self.token_ids = [int(i) for i in prompt_token_ids]
        self.num_prompt_tokens = len(self.token_ids)
        self.params = params
        self.on_rows = on_rows
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.block_table: list[int] = []
        self.rope_regime = 0
        self.chunks: deque[Chunk] = deque()
        self.error: FastLLMError | None = None
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.submitted_s = 0.0
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._sampler = Sampler(params, self.token_ids)
        self._detokenizer = detokenizer
        self._stop = StopMatcher(params.stop)
        self._rows_seen = 0
        self._started_s = 0.0
        self._first_token_s = 0.0

    @property
    def num_missing(self) -> int:
        """Tokens that are known and not computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

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
            self.chunks.append(Chunk(text, (token_id,), None, logprobs))

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
        self.chunks.append(Chunk(text, token_ids, reason, logprobs, self._timings(now_s)))

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
        rope_regimes=np.array([seq.rope_regime for seq, _ in scheduled], np.int32),
    )
    return batch, ranges
