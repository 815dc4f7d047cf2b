"""Sampler: one request's way from logits to a token id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastllm.request import SamplingParams
from fastllm.sampling.choice import Choice


class Sampler:
    """Chooses the tokens of one request.

    It owns its random generator and draws exactly one number for each sampled token, so a request
    gives the same tokens alone and in any batch.

    Parameters
    ----------
    params : SamplingParams
    prompt_token_ids : sequence of int
        For ``repetition_penalty``.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int] = ()) -> None:
        self.params = params
        self._choice = Choice(params)
        self._rng: np.random.Generator | None = None
        self._counts: Counter[int] = Counter()
        self._seen: set[int] = set(prompt_token_ids)
        self._penalised = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Return the next token and remember it for the penalties.

        Parameters
        ----------
        logits : float32[vocab_size]
            Read only.

        Raises
        ------
        FormatError
            The logits hold NaN, or an infinite maximum.
        """
        if self._penalised:
            logits = self._with_penalties(logits)
        token_id = self._choice.of(logits, 0.0 if self.params.greedy else self._random())
        self._counts[token_id] += 1
        self._seen.add(token_id)
        return token_id

    def _with_penalties(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        params, out = self.params, logits.copy()
        if params.repetition_penalty != 1 and self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            old = out[ids]
            factor = np.float32(params.repetition_penalty)
            out[ids] = np.where(old > 0, old / factor, old * factor)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            out[ids] -= np.float32(params.presence_penalty)
            out[ids] -= np.float32(params.frequency_penalty) * counts
        return out

    def _random(self) -> float:
        # One draw per token even when one candidate is left: the stream of random numbers must
        # not depend on how sure the model was.
        if self._rng is None:  # made late: a greedy run does not import numpy.random
            self._rng = np.random.Generator(np.random.PCG64(self.params.seed))
        return self._rng.random()
