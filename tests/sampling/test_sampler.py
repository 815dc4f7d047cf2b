import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FormatError
from fastllm.kernels.pick_sizes import FEW
from fastllm.request import SamplingParams
from fastllm.sampling.choice import Choice
from fastllm.sampling.sampler import Sampler
from tests.sampling.chain import allowed

ROWS = st.builds(
    lambda seed, n, scale: np.random.default_rng(seed).normal(size=n, scale=scale).astype("f4"),
    st.integers(0, 2**32 - 1),
    st.integers(1, 600),
    st.sampled_from([0.1, 1.0, 4.0, 20.0]),
)
CUTS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, FEW, FEW + 1, 1000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)


@pytest.fixture(scope="module", autouse=True)
def _built():
    """The first use may compile: not inside an example, which has a deadline."""
    Choice(SamplingParams()).of(np.zeros(3, np.float32), 0.5)


@given(ROWS, CUTS, st.floats(0, 1, exclude_max=True))
def test_the_choice_is_that_of_the_plain_chain(logits, params, random):
    assert Choice(params).of(logits, random) in allowed(logits, params, random)


@given(st.integers(0, 2**32 - 1), CUTS, st.floats(0, 1, exclude_max=True))
def test_a_wide_vocabulary_is_not_sorted_and_gives_the_same(seed, params, random):
    logits = np.random.default_rng(seed).normal(size=20_000, scale=2).astype(np.float32)
    assert Choice(params).of(logits, random) in allowed(logits, params, random)


@given(st.integers(1, 100), st.sampled_from([0, 3, 300]), st.floats(0, 1, exclude_max=True))
def test_equal_logits_are_cut_by_their_ids(count, top_k, random):
    logits = np.zeros(500, np.float32)
    logits[:count] = 1
    params = SamplingParams(temperature=1, top_k=top_k, top_p=0.5, min_p=0)
    assert Choice(params).of(logits, random) in allowed(logits, params, random)


@given(st.integers(1, 70), st.integers(0, 69))
def test_memory_behind_a_row_is_not_looked_at(count, best):
    """Rows of any length: what follows the last logit is somebody else's."""
    memory = np.full(count + 64, 1e30, np.float32)
    memory[:count] = np.linspace(0, 1, count)
    memory[best % count] = 2
    for params in (SamplingParams(temperature=0), SamplingParams(top_k=0, top_p=0, min_p=0)):
        assert Choice(params).of(memory[:count], 0.99) == best % count


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
