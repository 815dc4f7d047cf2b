"""A batch that is left between layers and taken up again has the bits of one that is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import RequestError
from fastllm.step.plan import MAX_LOGIT_ROWS
from tests.step.batches import Part, assert_same_bits, batch_of, feed
from tests.step.models import golden, quantized

# (golden model): parallel layers, positions and projections around the layers, norms behind them
MODELS = ["q4_1", "llama-bias", "gemma2", "opt-after", "falcon-new", "phi3-partial"]
LENGTHS = (41, 7, 23)


@pytest.fixture(scope="module", params=MODELS)
def runner(request, load, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    if request.param == "q4_1":
        checkpoint = quantized(folder / "model.gguf", request.param)
    else:
        checkpoint, _ = golden(request.param, folder / "model")
    return load(checkpoint, n_threads=2, num_blocks=8)


def parts_of(runner):
    """Prompts of three sequences, each in a block of its own."""
    rng = np.random.default_rng(3)
    return [
        Part(rng.integers(0, runner.vocab_size, length), 0, [i]) for i, length in enumerate(LENGTHS)
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=12), st.booleans())
def test_passes_that_leave_each_other_have_the_bits_of_each_alone(runner, turns, whole_between):
    prompts = parts_of(runner)
    expected = [feed(runner, prompt) for prompt in prompts]
    between = Part(prompts[0].ids[:5], 0, [3])
    alone = feed(runner, between)
    passes = {i: runner.begin(batch_of(prompt)) for i, prompt in enumerate(prompts)}
    turns = [*turns, *((i, runner.num_parts) for i in passes)]
    for i, count in turns:
        if i not in passes:
            continue
        logits = runner.go_on(passes[i], count)
        assert (logits is not None) == (passes[i].part >= runner.num_parts)
        if logits is not None:
            assert_same_bits(logits, expected[i])
            del passes[i]
        if whole_between:
            assert_same_bits(feed(runner, between), alone)
    assert not passes


def test_a_pass_that_is_dropped_is_in_nobodys_way(runner):
    prompt, other, _ = parts_of(runner)
    expected = feed(runner, prompt)
    runner.go_on(runner.begin(batch_of(other)), 1)
    assert_same_bits(feed(runner, prompt), expected)


def test_more_logits_than_the_buffer_holds(load, tmp_path):
    runner = load(quantized(tmp_path / "m.gguf", "q8_0"), n_threads=2, n_batch=MAX_LOGIT_ROWS + 9)
    ids = np.arange(MAX_LOGIT_ROWS + 9) % 100
    batch = batch_of(Part(ids, 0, range(4)))
    expected = runner.forward(batch).copy()
    one = runner.begin(batch)
    assert runner.go_on(one, 1) is None
    assert_same_bits(runner.go_on(one, 1), expected)


def test_what_is_refused(load, tmp_path):
    runner = load(quantized(tmp_path / "m.gguf", "q8_0"), n_threads=1)
    with pytest.raises(RequestError, match="token id"):
        runner.begin(batch_of(Part([1 << 20], 0, [0])))
    one = runner.begin(batch_of(Part([1, 2], 0, [0])))
    runner.close()
    with pytest.raises(RequestError, match="closed"):
        runner.go_on(one, 1)
