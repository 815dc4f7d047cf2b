import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastllm.sampling.top import top_ids

# Few distinct values, so that ties are the rule; -inf marks forbidden tokens.
VALUES = st.sampled_from([-np.inf, -3.5, -0.0, 0.0, 1.0, 1.5, 2.0])


@given(arrays(np.float32, st.integers(1, 3000), elements=VALUES), st.integers(0, 300))
def test_equals_a_stable_sort(logits, k):
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert top_ids(logits, k).tolist() == expected


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 20000))
def test_equals_a_stable_sort_on_ordinary_rows(seed, k, n):
    logits = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    expected = np.argsort(-logits, kind="stable")[:k]
    assert top_ids(logits, k).tolist() == expected.tolist()
