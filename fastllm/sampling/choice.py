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
        self._address: int = request.ctypes.data
        self._unit = _unit()

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
        num_tokens = len(row)
        token_id = self._unit(
            row.__array_interface__["data"][0],
            num_tokens,
            self._address,
            _scratch_address(num_tokens),
        )
        if token_id < 0:
            check_finite(float(request[MAXIMUM]))
        return token_id


@lru_cache(maxsize=1)
def _unit() -> Callable[..., int]:
    return objects.callable_at(objects.addresses(["pick"])["pick"], PICK_ARGS)


def _scratch_address(num_tokens: int) -> int:
    if getattr(_scratch, "num_tokens", 0) < num_tokens:
        _scratch.area = np.empty(scratch_bytes(num_tokens), np.uint8)
        _scratch.address, _scratch.num_tokens = _scratch.area.ctypes.data, num_tokens
    address: int = _scratch.address
    return address
