"""`LLM` over a real runner of random weights: the same tokens by every road through the engine."""

import pytest

from fastllm import LLM, SamplingParams
from tests.golden.cases import case, materialize
from tests.step.models import golden, runner_of

CASE = case("llama")
PROMPT = CASE.token_ids.tolist()
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
DRAWN = SamplingParams(temperature=1, top_k=0, seed=5, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return materialize(CASE, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, n_threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(llm):
    """What each request answers with the machine to itself, from a cold cache."""
    answers = {}
    for name, params in (("greedy", GREEDY), ("drawn", DRAWN)):
        llm.reset()
        answers[name] = llm.generate([PROMPT], params)[0].token_ids
    assert answers["greedy"] != answers["drawn"]
    return answers


def test_warm_is_cold(llm, alone):
    llm.reset()
    llm.generate([PROMPT[: len(PROMPT) // 2]], GREEDY)
    warm = llm.generate([PROMPT], GREEDY)[0]
    assert warm.timings.cached_tokens > 0
    assert warm.token_ids == alone["greedy"]


def test_together_is_alone(llm, alone):
    params = [GREEDY, DRAWN, GREEDY]
    found = [a.token_ids for a in llm.generate([PROMPT] * 3, params)]
    assert found == [alone["greedy"], alone["drawn"], alone["greedy"]]


def test_logits_are_those_of_transformers(llm):
    assert abs(llm.logits(PROMPT) - CASE.logits).max() <= 2e-4 * CASE.logits.std()


def test_preempted_is_undisturbed(tmp_path, alone):
    """Two answers that need four blocks of three: one gives way and computes again."""
    checkpoint, _ = golden("llama", tmp_path, max_position_embeddings=128)
    with LLM._of(runner_of(checkpoint, n_threads=2, num_blocks=3)) as small:
        prompts = [PROMPT + alone["greedy"], PROMPT + alone["drawn"]]
        long = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        separate = []
        for prompt in prompts:
            small.reset()
            separate += [small.generate([prompt], long)[0].token_ids]
        small.reset()
        assert [a.token_ids for a in small.generate(prompts, long)] == separate


def test_cancelled_leaves_nothing_behind(llm, alone):
    llm.reset()
    with llm.stream(PROMPT, DRAWN) as stream:
        taken = [
            token for chunk, _ in zip(stream, range(5), strict=False) for token in chunk.token_ids
        ]
        stream.cancel()
    assert taken == alone["drawn"][: len(taken)]
    assert llm.generate([PROMPT], DRAWN)[0].token_ids == alone["drawn"]
