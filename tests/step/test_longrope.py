"""LongRoPE: short and long factors in one model, one batch and one answer, against the oracle."""

from dataclasses import replace

import numpy as np
import pytest

from fastllm.errors import RequestError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models.bind import bind
from fastllm.request import SamplingParams
from tests.by_hand import add, engine_of, finish, sequence
from tests.golden.cases import case, materialize, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of
from tests.step.batches import Part, assert_same_bits, batch_of, feed, feed_cut
from tests.step.models import runner_of

CASE = case("phi3-longrope-long")
ORIGINAL = CASE.config["original_max_position_embeddings"]
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=[materialize, materialize_gguf], ids=["hf", "gguf"])
def model(request, load, tmp_path_factory):
    """The runner, the oracle (tokens to logits), and the checkpoint."""
    checkpoint = open_checkpoint(request.param(CASE, tmp_path_factory.mktemp("model") / "model"))
    bound = bind(checkpoint)
    weights = weights_of(bound, checkpoint)
    runner = load(checkpoint, n_threads=2, n_ctx=100, num_blocks=8)
    return runner, lambda ids: forward(bound.decoder, weights, ids), checkpoint


def test_short_and_long_sequences_in_one_batch(model):
    runner, oracle, _ = model
    assert runner.short_context == ORIGINAL
    short, long = CASE.token_ids[:ORIGINAL], CASE.token_ids
    parts = Part(short, 0, [5], 0), Part(long, 0, [2], 1), Part(short, 0, [3], 0)
    found = feed(runner, *parts)
    pieces = np.split(found, [ORIGINAL, ORIGINAL + len(long)])
    for piece, part in zip(pieces, parts, strict=True):
        assert np.abs(piece - oracle(part.ids)).max() <= TOLERANCE * CASE.logits.std()
        assert_same_bits(feed(runner, replace(part, blocks=[1])), piece)
    assert_same_bits(feed_cut(runner, long, range(len(long)), [4], regime=1), pieces[1])
    assert np.abs(pieces[0] - pieces[1][:ORIGINAL]).max() > 0.01


def test_an_answer_that_outgrows_the_original_context(model):
    """Each token is what the whole sequence so far asks for, whichever factors it takes."""
    runner, oracle, _ = model
    prompt = CASE.token_ids[: ORIGINAL - 4].tolist()
    engine = engine_of(runner)
    seq = sequence(prompt, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    add(engine, seq)
    finish(engine, seq)
    for end in range(len(prompt), len(seq.token_ids)):
        assert seq.token_ids[end] == oracle(seq.token_ids[:end])[-1].argmax()


def test_a_context_within_the_original_knows_short_factors_only(model):
    runner = runner_of(model[2], n_threads=1, n_ctx=ORIGINAL)
    try:
        part = Part(CASE.token_ids[:4], 0, [0])
        assert_same_bits(feed(runner, part), feed(model[0], part))
        with pytest.raises(RequestError, match=r"rope regime outside 0\.\.0"):
            runner.forward(batch_of(replace(part, regime=1)))
    finally:
        runner.close()


def test_regimes_of_a_batch_are_checked(model):
    batch = batch_of(Part(CASE.token_ids[:4], 0, [0]))
    for regimes, message in (
        (np.array([2], np.int32), r"rope regime outside 0\.\.1"),
        (np.array([-1], np.int32), "rope regime"),
        (np.array([0, 0], np.int32), "one for each sequence"),
        (np.array([0], np.int64), "int32"),
    ):
        with pytest.raises(RequestError, match=message):
            model[0].forward(replace(batch, rope_regimes=regimes))
    logits = model[0].forward(batch).copy()
    assert_same_bits(model[0].forward(replace(batch, rope_regimes=None)), logits)
