import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FormatError
from fastllm.request import SamplingParams
from fastllm.sampling.sampler import Sampler, candidates

ROWS = st.builds(
    lambda seed, n, scale: np.random.default_rng(seed).normal(size=n, scale=scale).astype("f4"),
    st.integers(0, 2**32 - 1),
    st.integers(1, 600),
    st.sampled_from([0.1, 1.0, 4.0, 20.0]),
)
CUTS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 1000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)


def naive(logits, params):
    """The chain read aloud: sort, cut by rank, by cumulative probability, by share of the best."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.top_k:
        order = order[: params.top_k]
    logits = logits.astype(np.float64)
    p = np.exp(logits[order] - logits[order].max())
    p /= p.sum()
    kept, total = [], 0.0
    for i, share in zip(order, p, strict=True):
        kept.append(i)
        total += share
        if total >= params.top_p and params.top_p < 1:
            break
    best = logits[kept[0]]
    kept = [i for i in kept if np.exp(logits[i] - best) >= params.min_p] or kept[:1]
    weights = np.exp((logits[kept] - best) / params.temperature)
    return dict(zip(kept, weights / weights.sum(), strict=True))


@given(ROWS, CUTS)
def test_candidates_are_those_of_the_plain_chain(logits, params):
    ids, weights = candidates(logits, params)
    expected = naive(logits, params)
    found = dict(zip(ids.tolist(), weights / weights.sum(), strict=True))
    # A cumulative sum that meets top_p within rounding may end one token earlier or later.
    differing = set(found) ^ set(expected)
    if differing:
        assert len(differing) == 1
        assert 0 < params.top_p < 1
    else:
        assert found == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**32 - 1), CUTS)
def test_a_wide_vocabulary_gives_the_same_without_sorting_it(seed, params):
    logits = np.random.default_rng(seed).normal(size=20_000, scale=2).astype(np.float32)
    ids, weights = candidates(logits, params)
    expected = naive(logits, params)
    assert len(set(ids.tolist()) ^ set(expected)) <= (0 if params.top_p in (0.0, 1.0) else 1)
    assert weights.max() == weights[ids == logits.argmax()] == 1


def test_frequencies_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    params = SamplingParams(temperature=1, top_k=3, top_p=1, min_p=0, seed=7)
    sampler = Sampler(params)
    draws = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=4)
    expected = np.array([0.5, 0.3, 0.15, 0]) / 0.95 * 4000
    # Five standard deviations of a binomial count.
    assert (np.abs(draws - expected) <= 5 * np.sqrt(expected + 1)).all()
    assert draws[3] == 0


@given(st.integers(0, 2**64 - 1))
def test_a_seed_decides_the_tokens(seed):
    rows = np.random.default_rng(1).normal(size=(20, 300)).astype(np.float32)
    params = SamplingParams(seed=seed)
    one, two = Sampler(params), Sampler(params)
    assert [one.sample(r) for r in rows] == [two.sample(r) for r in rows]


def test_no_seed_draws_a_fresh_one():
    rows = np.zeros((40, 300), np.float32)
    draws = {tuple(s.sample(r) for r in rows) for s in (Sampler(SamplingParams()) for _ in "ab")}
    assert len(draws) == 2


def test_greedy_takes_the_lowest_id_among_equals():
    logits = np.array([0, 2, 5, 5, 1], np.float32)
    assert Sampler(SamplingParams(temperature=0)).sample(logits) == 2


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error_of_ours(temperature, bad):
    logits = np.zeros(500, np.float32)
    logits[321] = bad
    with pytest.raises(FormatError, match="weights hold NaN"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)
    with pytest.raises(FormatError):
        Sampler(SamplingParams(temperature=temperature)).sample(np.full(5, -np.inf, np.float32))


def test_a_forbidden_token_is_never_drawn():
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 9]] = 0
    sampler = Sampler(SamplingParams(top_k=0, top_p=1, min_p=0, seed=1))
    assert {sampler.sample(logits) for _ in range(60)} == {3, 9}


def test_penalties():
    logits = np.array([3.0, 2.9, -1.0, 2.0], np.float32)
    before = logits.copy()
    repeat = Sampler(SamplingParams(temperature=0, repetition_penalty=2), [0, 2])
    assert [repeat.sample(logits) for _ in range(3)] == [1, 3, 0]  # each one seen is halved
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=0.5), [0])
    assert [presence.sample(logits) for _ in range(3)] == [0, 1, 0]  # the prompt does not count
    frequency = Sampler(SamplingParams(temperature=0, frequency_penalty=0.5))
    assert [frequency.sample(logits) for _ in range(5)] == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(logits, before)
