"""Logits to log-probabilities, in float64 and shifted by the maximum, so that nothing overflows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FormatError
from fastllm.request import TokenLogprob
from fastllm.sampling.top import top_ids

# Rows turned to float64 at once: 16 rows of 150,000 logits are 20 MB, and big enough for NumPy.
_ROWS = 16


def check_finite(row_max: float) -> None:
    """Refuse logits whose largest value is NaN or infinite.

    `max` carries a NaN from anywhere in the row, so one comparison checks all of it.

    Raises
    ------
    FormatError
        The weights hold NaN or infinity (or the file is damaged).
    """
    if not math.isfinite(row_max):
        raise FormatError(
            f"the model computed {row_max} as a logit: its weights hold NaN or infinity; "
            "check the file or fetch it again"
        )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``log(softmax(logits))`` over the last axis.

    Parameters
    ----------
    logits : float32[..., vocab_size]

    Returns
    -------
    float64[..., vocab_size]

    Raises
    ------
    FormatError
        A row's largest logit is NaN or infinite.
    """
    top = logits.max(axis=-1, keepdims=True)
    check_finite(float(top.max()) if top.size else 0.0)
    shifted = logits.astype(np.float64) - top
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def token_logprobs(
    logits: NDArray[np.float32], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the log-probability that each row gives to its token.

    Parameters
    ----------
    logits : float32[n, vocab_size]
    token_ids : int[n]

    Returns
    -------
    float64[n]
    """
    out = np.empty(len(token_ids), np.float64)
    for start in range(0, len(token_ids), _ROWS):
        ids = token_ids[start : start + _ROWS]
        rows = log_softmax(logits[start : start + _ROWS])
        out[start : start + _ROWS] = rows[np.arange(len(ids)), ids]
    return out


def token_logprob(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprob:
    """Return one token's log-probability and the `num_top` likeliest tokens.

    Parameters
    ----------
    logits : float32[vocab_size]
    """
    logp = log_softmax(logits)
    top = tuple((int(i), float(logp[i])) for i in top_ids(logits, num_top))
    return TokenLogprob(token_id, float(logp[token_id]), top)


def perplexity(nll_sum: float, num_tokens: int) -> float:
    """Return ``exp(nll_sum / num_tokens)``; infinity where that overflows."""
    mean = nll_sum / num_tokens
    return math.exp(mean) if mean < 709.0 else math.inf
