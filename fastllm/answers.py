"""Events of a sequence to what a caller holds: a stream of chunks, or a whole completion.

The objects here are the owners of their requests: when nobody holds one any more, its request ends
and its KV blocks are free, with no help of anybody's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastllm.arguments import seconds
from fastllm.driver import Driver
from fastllm.errors import AnswerTimeoutError, FastLLMError
from fastllm.events import LOOK_UP_S, Gathered, Held, Unread
from fastllm.request import Chunk, Completion, Timings, TokenLogprob
from fastllm.sampling.logprobs import token_logprob
from fastllm.sequence import Sequence


class Stream(Iterator[Chunk], Held):
    """An answer on its way: an iterator of `Chunk` that can be stopped from anywhere.

    Leaving ``with`` or `close` ends the request at once; so does forgetting the object. Several
    threads may iterate one stream: each chunk goes to one of them, and all of them come to the end.
    A stream that nobody reads is computed 64 tokens ahead and then waits.
    """

    def __init__(self, driver: Driver, seq: Sequence, unread: Unread) -> None:
        self._driver, self._seq, self._unread = driver, seq, unread
        self._finished = False
        try:
            driver.submit(seq, self)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Chunk:
        try:
            while not self._finished:
                event = self._unread.take()
                if self._seq.stalled:
                    self._driver.wake()
                if self._finished:
                    break
                if isinstance(event, FastLLMError):
                    raise event
                if event is not None:
                    if event.finish_reason is not None:
                        self._end()
                    return event
                if self._seq.ended and not self._unread.pending:
                    break
        except BaseException:
            self.close()
            raise
        self._end()
        raise StopIteration

    def cancel(self) -> None:
        """End the answer at the next step; the last chunk says "cancelled". Signal-safe."""
        self._driver.cancel(self._seq)

    def close(self) -> None:
        """End the answer and yield nothing more."""
        self.cancel()
        self._end()

    def _end(self) -> None:
        self._finished = True
        self._unread.put(None)  # Who else waits here wakes up, and wakes the next.

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Answer(Held):
    """A whole answer on its way; ask for it with `result`, end it with `cancel`.

    Forgetting the object ends the request, too.
    """

    def __init__(
        self, driver: Driver, seq: Sequence, gathered: Gathered, scorer: PromptScorer | None
    ) -> None:
        self._driver, self._seq = driver, seq
        self._gathered, self._scorer = gathered, scorer

    def submit(self, deadline_s: float | None = None) -> None:
        """Queue the request; the errors are those of `Driver.submit`."""
        self._seq.deadline_s = deadline_s
        self._driver.submit(self._seq, self)

    def check(self) -> None:
        """Refuse what could never run, before anything is queued."""
        self._driver.check(self._seq)

    def cancel(self) -> None:
        """End the answer at the next step, from any thread: it is what there is by then."""
        self._driver.cancel(self._seq)

    def done(self) -> bool:
        """True when `result` returns (or raises) at once."""
        return self._gathered.done

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the answer and return it.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; the request goes on afterwards, and one may ask again.

        Raises
        ------
        AnswerTimeoutError
            It has not come by then; a `TimeoutError`, too.
        FastLLMError
            What went wrong with this request.
        """
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        until_s = None if timeout is None else time.monotonic() + timeout
        gathered = self._gathered
        while not gathered.done:
            left_s = LOOK_UP_S if until_s is None else min(until_s - time.monotonic(), LOOK_UP_S)
            if not gathered.wait(left_s) and left_s <= 0:
                raise AnswerTimeoutError(
                    f"the answer has not come within {timeout:g} s and goes on: ask again or cancel"
                )
        if gathered.error is not None:
            raise gathered.error
        chunks = gathered.chunks
        params, last = self._seq.params, chunks[-1]
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=[i for chunk in chunks for i in chunk.token_ids],
            finish_reason=last.finish_reason or "cancelled",
            logprobs=None
            if params.logprobs is None
            else [entry for chunk in chunks for entry in chunk.logprobs],
            prompt_logprobs=self._scorer.logprobs if self._scorer else None,
            prompt_token_ids=self._seq.token_ids[: self._seq.num_prompt_tokens],
            timings=last.timings or Timings(),
        )


def results(answers: list[Answer], timeout: float | None = None) -> list[Completion]:
    """Queue answers, wait for all of them and return them; whatever interrupts this ends them.

    Parameters
    ----------
    answers : list of Answer
    timeout : float, optional
        Seconds; those that are not complete by then end with what they have.
    """
    try:
        submit(answers, timeout)
        return [answer.result() for answer in answers]
    finally:
        for answer in answers:
            answer.cancel()


def submit(answers: list[Answer], timeout: float | None = None) -> None:
    """Queue all of them or, where one could never run, none."""
    if timeout is not None:
        timeout = seconds("timeout", timeout)
    deadline_s = None if timeout is None else time.perf_counter() + timeout
    for answer in answers:
        answer.check()
    for answer in answers:
        answer.submit(deadline_s)


class PromptScorer:
    """Gathers the log-probabilities of a prompt while its logits pass by.

    Parameters
    ----------
    token_ids : list of int
        The prompt.
    num_top : int
        How many alternatives to report for each.

    Attributes
    ----------
    logprobs : list of (TokenLogprob or None)
        None for the first token.
    """

    def __init__(self, token_ids: list[int], num_top: int) -> None:
        self._token_ids, self._num_top = token_ids, num_top
        self.logprobs: list[TokenLogprob | None] = [None]

    def __call__(self, start: int, rows: NDArray[np.float32]) -> None:
        """Take the logits of positions ``start .. start + len(rows) - 1``."""
        following = self._token_ids[start + 1 : start + 1 + len(rows)]
        # Rows behind the prompt's last token belong to the answer.
        for row, token_id in zip(rows, following, strict=False):
            self.logprobs.append(token_logprob(row, token_id, self._num_top))
