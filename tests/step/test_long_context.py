"""Contexts of several attention chunks (512 positions), windows across them, blocks anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.models.bind import bind
from tests.naive.forward import forward
from tests.naive.weights import weights_of
from tests.step.batches import Part, assert_same_bits, feed, feed_cut
from tests.step.models import golden

CONTEXT = 1300
LENGTH = 1250
BLOCKS = np.random.default_rng(1).permutation(24)[: -(-CONTEXT // 64)]
OTHER_BLOCKS = np.random.default_rng(2).permutation(24)[: -(-CONTEXT // 64)]
# A window smaller than a page's chunk, one that crosses a chunk's border, none.
MODELS = {
    "window-100": ("mistral", {"sliding_window": 100}),
    "window-600": ("gemma2", {"sliding_window": 600}),
    "no-window": ("llama-mqa", {}),
}
TOLERANCE = {"f32": 2e-4, "f16": 2e-2, "i16": 2e-2}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    name, config = MODELS[request.param]
    folder = tmp_path_factory.mktemp("long") / "model"
    return golden(name, folder, max_position_embeddings=CONTEXT, **config)[0]


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(6).integers(0, 131, LENGTH).astype(np.int32)


@pytest.fixture(scope="module", params=["f32", "f16", "i16"])
def model(request, checkpoint, load, ids):
    runner = load(checkpoint, n_threads=2, num_blocks=24, n_batch=LENGTH, kv_type=request.param)
    return runner, feed(runner, Part(ids, 0, BLOCKS))


@pytest.fixture(scope="module")
def expected(checkpoint, ids):
    bound = bind(checkpoint)
    return forward(bound.decoder, weights_of(bound, checkpoint), ids, n_ctx=CONTEXT, dtype="f4")


def test_against_the_oracle(model, expected):
    runner, logits = model
    difference = np.abs(logits - expected).max() / expected.std()
    assert difference <= TOLERANCE[runner.kv_type]


@settings(max_examples=6, deadline=None)
@given(
    cuts=st.lists(
        st.one_of(st.integers(1, LENGTH - 1), st.sampled_from([511, 512, 513, 576, 1023, 1024])),
        min_size=1,
        max_size=8,
    ),
    other=st.booleans(),
)
def test_cut_anywhere(model, ids, cuts, other):
    runner, logits = model
    blocks = OTHER_BLOCKS if other else BLOCKS
    assert_same_bits(feed_cut(runner, ids, cuts, blocks), logits)


@pytest.mark.parametrize("start", [500, 630, 1015])
def test_token_by_token_across_a_border(model, ids, start):
    """Small batches share one sequence's chunks between threads; large ones walk them in order."""
    runner, logits = model
    cuts = [start, *range(start + 1, start + 20), start + 30, start + 47]
    found = feed_cut(runner, ids[: start + 60], cuts, BLOCKS)
    assert_same_bits(found, logits[: start + 60])


def test_long_beside_short(model, ids):
    """A token far into one sequence, a prompt and another token near the start, in one batch."""
    runner, logits = model
    feed(runner, Part(ids[:1100], 0, BLOCKS), rows=[])
    found = feed(
        runner,
        Part(ids[1100:1101], 1100, BLOCKS),
        Part(ids[:9], 0, [BLOCKS[-1]]),
        Part(ids[:1], 0, [BLOCKS[-2]]),
    )
    assert_same_bits(found, logits[[1100, *range(9), 0]])
