import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FormatError
from fastllm.sampling import logprobs as lp


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 50))
def test_token_logprobs_against_exact_sums(seed, n, vocab):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, vocab), scale=30).astype(np.float32)
    ids = rng.integers(0, vocab, n)
    found = lp.token_logprobs(logits, ids)
    for row, token_id, value in zip(logits.astype(float), ids, found, strict=True):
        top = row.max()
        exact = row[token_id] - top - math.log(math.fsum(np.exp(row - top)))
        assert value == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_large_logits_do_not_overflow():
    logits = np.array([[3e38, -3e38, 3e38]], np.float32)
    np.testing.assert_allclose(lp.log_softmax(logits)[0, [0, 2]], -math.log(2))


def test_broken_rows_are_refused():
    with pytest.raises(FormatError, match="NaN"):
        lp.log_softmax(np.array([[0, 1], [np.nan, 1]], np.float32))


def test_token_logprob_lists_the_likeliest():
    found = lp.token_logprob(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0, 2)
    assert found.token_id == 0
    assert found.logprob == pytest.approx(math.log(0.2), rel=1e-6)
    assert [i for i, _ in found.top] == [1, 2]
    assert lp.token_logprob(np.zeros(3, np.float32), 1, 0).top == ()


def test_perplexity():
    assert lp.perplexity(math.log(4) * 10, 10) == pytest.approx(4)
    assert lp.perplexity(1e9, 1) == math.inf
