"""Choice: the chain of one request, run over a row of logits by the unit "pick"."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels import objects
from fastllm.kernels.interpreter_codes import PICK_ARGS
from fastllm.kernels.pick_sizes import (
    INVERSE_TEMPERATURE,
    LOG_MIN_P,
    MAXIMUM,
    RANDOM,
    REQUEST_WORDS,
    TOP_K,
    TOP_P,
    scratch_bytes,
)
from fastllm.request import SamplingParams
from fastllm.sampling.logprobs import check_finite

_scratch = threading.local()  # of the thread that samples: a row of 152,000 takes 1.2 MB


class Choice:
    """The chain that `params` ask for, as words of the unit.

    Parameters
    ----------
    params : SamplingParams
    """

    def __init__(self, params: SamplingParams) -> None:
        request = self._request = np.zeros(REQUEST_WORDS, np.float64)
        # 1 / a temperature that underflows: the largest logit alone is left then
        request[INVERSE_TEMPERATURE] = 0.0 if params.greedy else min(1 / params.temperature, 1e30)
        request[TOP_K], request[TOP_P] = params.top_k, params.top_p
        request[LOG_MIN_P] = math.log(params.min_p) if params.min_p > 0 else -math.inf

    def of(self, logits: NDArray[np.float32], random: float) -> int:
        """Return the token that the chain chooses.

        Parameters
        ----------
        logits : float32[vocab_size]
            -inf forbids a token.
        random : float
            In [0, 1); not looked at by a greedy chain.

        Raises
        ------
        FormatError
            The logits hold NaN, or their maximum is infinite.
        """
        row = np.ascontiguousarray(logits, np.float32)
        request = self._request
        request[RANDOM] = random
        token_id = _unit()(
            row.__array_interface__["data"][0],
            len(row),
            request.__array_interface__["data"][0],
            _scratch_address(len(row)),
        )
        if token_id < 0:
            check_finite(float(request[MAXIMUM]))
        return token_id


@lru_cache(maxsize=1)
def _unit() -> Callable[..., int]:
    return objects.callable_at(objects.addresses(["pick"])["pick"], PICK_ARGS)


def _scratch_address(num_tokens: int) -> int:
    needed = scratch_bytes(num_tokens)
    area: NDArray[np.uint8] | None = getattr(_scratch, "area", None)
    if area is None or len(area) < needed:
        area = _scratch.area = np.empty(needed, np.uint8)
    address: int = area.__array_interface__["data"][0]
    return address
