"""Events of a sequence to what a caller holds: a stream of chunks, or a whole completion."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastllm.engine import Engine
from fastllm.request import Chunk, Completion, Timings, TokenLogprob
from fastllm.sampling.logprobs import token_logprob
from fastllm.sequence import Sequence


class Stream(Iterator[Chunk]):
    """An answer on its way: an iterator of `Chunk` that can be stopped from anywhere.

    Leaving ``with`` or `close` ends the request at once; so does forgetting the object.
    """

    def __init__(self, engine: Engine, seq: Sequence) -> None:
        self._engine, self._seq = engine, seq
        self._finished = False
        engine.submit(seq)

    def __next__(self) -> Chunk:
        if self._finished:
            raise StopIteration
        try:
            chunk = self._engine.wait(self._seq)
        except BaseException:
            self.close()
            raise
        self._finished = chunk.finish_reason is not None
        return chunk

    def cancel(self) -> None:
        """End the answer at the next step; the last chunk says "cancelled". Signal-safe."""
        self._engine.cancel(self._seq)

    def close(self) -> None:
        """End the answer and yield nothing more."""
        self._finished = True
        self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_seq"):
            self.close()


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


class Answer:
    """Gathers the chunks of one sequence into a `Completion`."""

    def __init__(self, engine: Engine, seq: Sequence, scorer: PromptScorer | None) -> None:
        self._engine, self._scorer = engine, scorer
        self._prompt_token_ids = list(seq.token_ids)
        self.seq = seq

    def result(self) -> Completion:
        """Wait for the last chunk and return the whole."""
        text: list[str] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        while True:
            chunk = self._engine.wait(self.seq)
            text.append(chunk.text)
            token_ids += chunk.token_ids
            logprobs += chunk.logprobs
            if chunk.finish_reason is not None:
                return Completion(
                    text="".join(text),
                    token_ids=token_ids,
                    finish_reason=chunk.finish_reason,
                    logprobs=None if self.seq.params.logprobs is None else logprobs,
                    prompt_logprobs=self._scorer.logprobs if self._scorer else None,
                    prompt_token_ids=self._prompt_token_ids,
                    timings=chunk.timings or Timings(),
                )
