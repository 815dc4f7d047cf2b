"""Sampler: one request's way from logits to a token id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastllm.request import SamplingParams
from fastllm.sampling.logprobs import check_finite
from fastllm.sampling.top import top_ids

# First guess of how many tokens reach `top_p` when `top_k` is off; grown until they do.
_FIRST_NUCLEUS = 256


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
        check_finite(float(logits.max()))
        if self._penalised:
            logits = self._with_penalties(logits)
        token_id = int(logits.argmax()) if self.params.greedy else self._draw(logits)
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

    def _draw(self, logits: NDArray[np.float32]) -> int:
        ids, weights = candidates(logits, self.params)
        # One draw per token even when one candidate is left: the stream of random numbers must
        # not depend on how sure the model was.
        if self._rng is None:  # made late: a greedy run does not import numpy.random
            self._rng = np.random.Generator(np.random.PCG64(self.params.seed))
        bound = self._rng.random()
        total = np.cumsum(weights)
        place = int(np.searchsorted(total, bound * total[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def candidates(
    logits: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that survive top-k, top-p and min-p, and their tempered weights.

    Parameters
    ----------
    logits : float32[vocab_size]
        Finite maximum; -inf forbids a token.
    params : SamplingParams
        ``temperature`` > 0.

    Returns
    -------
    ids : int64[n]
        Likeliest first, n >= 1; lower id first among equals.
    weights : float64[n]
        Proportional to the probabilities at the temperature; the first is 1.
    """
    if params.top_k == 0 and params.top_p >= 1 and params.min_p <= 0:
        ids = np.arange(len(logits))  # Nothing is cut, so nothing needs an order.
        shifted = logits.astype(np.float64) - float(logits.max())
        return ids, np.exp(shifted / params.temperature)
    if params.top_k > 0:
        ids = top_ids(logits, params.top_k)
        shifted = logits[ids].astype(np.float64)
        shifted -= shifted[0]
        ids = ids[: _nucleus(np.exp(shifted), params.top_p, None)]
    else:
        ids = _nucleus_of_all(logits, params)
    shifted = logits[ids].astype(np.float64)
    shifted -= shifted[0]
    # The weights fall, so those above min_p are a prefix; the first one always stays.
    kept = max(1, int((np.exp(shifted) >= params.min_p).sum()))
    kept_shifted = shifted[:kept]
    return ids[:kept], np.exp(kept_shifted / params.temperature)


def _nucleus(weights: NDArray[np.float64], top_p: float, total: float | None) -> int:
    """Return how many leading weights reach `top_p` of `total`; len(weights) if none do."""
    if top_p >= 1:
        return len(weights)
    reached = np.cumsum(weights)
    goal = top_p * (float(reached[-1]) if total is None else total)
    return min(len(weights), int(np.searchsorted(reached, goal, side="left")) + 1)


def _nucleus_of_all(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.int64]:
    """Return what top-p leaves of the whole vocabulary, likeliest first, without sorting it.

    Where min-p will cut as well, tokens that it surely cuts are left out already: both keep a
    beginning of the same order.
    """
    top = float(logits.max())
    total = 0.0
    if params.top_p < 1:
        total = float(np.exp(logits.astype(np.float64) - top).sum())
    if params.min_p > 0:
        ids = np.flatnonzero(logits >= top + np.log(params.min_p) - 1e-3)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        return ids[: _nucleus(_weights(logits, ids, top), params.top_p, total)]
    guess = _FIRST_NUCLEUS
    while True:
        ids = top_ids(logits, guess)
        weights = _weights(logits, ids, top)
        if len(ids) == len(logits) or float(weights.sum()) >= params.top_p * total:
            return ids[: _nucleus(weights, params.top_p, total)]
        guess *= 8


def _weights(
    logits: NDArray[np.float32], ids: NDArray[np.int64], top: float
) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits[ids].astype(np.float64) - top)
    return weights
