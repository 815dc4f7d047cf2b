"""A token's logits have the same bits however the work is cut, shared or placed."""

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastllm.kernels.layouts import LAYOUTS
from fastllm.options import KV_TYPES
from fastllm.step.plan import MAX_LOGIT_ROWS
from fastllm.step.runner import Runner
from tests.golden.cases import cases
from tests.step.batches import Part, assert_same_bits, batch_of, feed, feed_cut
from tests.step.models import VOCAB, golden, quantized, runner_of

# (golden model, type of keys and values): whatever a family can have
GOLDEN = tuple((case.name, kv_type) for case in cases() for kv_type in KV_TYPES)
LENGTH = 41  # more than a split batch, and no multiple of a tile
EXAMPLES = settings(max_examples=12, deadline=None)


@dataclass
class Loaded:
    """A model with the logits of one sequence, computed at once."""

    checkpoint: object
    options: dict[str, object]
    runner: Runner
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]


@pytest.fixture(
    scope="module",
    params=[*LAYOUTS, *GOLDEN],
    ids=lambda param: param if isinstance(param, str) else "-".join(param),
)
def model(request, load, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    options = {"num_blocks": 8}
    if isinstance(request.param, str):
        checkpoint, vocab = quantized(folder / "model.gguf", request.param), VOCAB
    else:
        name, options["kv_type"] = request.param
        checkpoint, case = golden(name, folder / "model")
        vocab, options["n_ctx"] = case.logits.shape[1], case.n_ctx
    runner = load(checkpoint, n_threads=2, **options)
    ids = np.random.default_rng(5).integers(0, vocab, LENGTH).astype(np.int32)
    return Loaded(checkpoint, options, runner, ids, feed(runner, Part(ids, 0, [0])))


def test_logits_are_numbers_and_differ(model):
    assert np.isfinite(model.logits).all()
    assert model.logits.std(axis=1).min() > 0.01
    assert len(np.unique(model.logits, axis=0)) == LENGTH


@EXAMPLES
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6))
def test_cut_in_pieces(model, cuts):
    assert_same_bits(feed_cut(model.runner, model.ids, cuts, [2]), model.logits)


def test_token_by_token(model):
    assert_same_bits(feed_cut(model.runner, model.ids, range(LENGTH), [2]), model.logits)


SEQUENCES = st.lists(
    st.tuples(
        st.integers(1, LENGTH),  # tokens
        st.lists(st.integers(1, LENGTH - 1), max_size=8),  # where it is cut
        st.integers(0, 4),  # batches that pass before it comes
    ),
    min_size=2,
    max_size=4,
)


@EXAMPLES
@given(sequences=SEQUENCES, blocks=st.permutations(range(8)))
def test_beside_other_sequences(model, sequences, blocks):
    """Sequences come and go, prompts and single tokens mixed in one batch."""
    plans = []  # for each sequence its pieces (first, end), None while it waits
    for length, cuts, delay in sequences:
        ends = sorted({min(cut, length) for cut in cuts} | {length})
        plans.append([None] * delay + list(zip([0, *ends], ends, strict=False)))
    for pieces in zip_longest(*plans):
        present = [(s, piece) for s, piece in enumerate(pieces) if piece]
        if present:
            parts = [Part(model.ids[a:b], a, [blocks[s]]) for s, (a, b) in present]
            expected = np.concatenate([model.logits[a:b] for _, (a, b) in present])
            assert_same_bits(feed(model.runner, *parts), expected)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_number_of_threads(model, n_threads):
    runner = runner_of(model.checkpoint, n_threads=n_threads, **model.options)
    try:
        assert_same_bits(feed(runner, Part(model.ids, 0, [1])), model.logits)
        assert_same_bits(feed_cut(runner, model.ids, [30, 33, 34], [1]), model.logits)
    finally:
        runner.close()


@EXAMPLES
@given(
    rows=st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=LENGTH, unique=True).map(sorted)
)
def test_some_rows_only(model, rows):
    found = feed(model.runner, Part(model.ids, 0, [3]), rows=rows)
    assert_same_bits(found, model.logits[rows])


def test_more_rows_than_the_buffer_holds(model):
    assert LENGTH > MAX_LOGIT_ROWS
    for count in (MAX_LOGIT_ROWS, MAX_LOGIT_ROWS + 1, LENGTH):
        rows = range(LENGTH - count, LENGTH)
        found = feed(model.runner, Part(model.ids, 0, [3]), rows=rows)
        assert_same_bits(found, model.logits[list(rows)])


def test_no_rows_at_all(model):
    """A piece of a prompt whose logits nobody wants still fills the cache."""
    first = model.runner.forward(batch_of(Part(model.ids[:30], 0, [4]), rows=[]))
    assert first.shape == (0, model.logits.shape[1])
    rest = feed(model.runner, Part(model.ids[30:], 30, [4]))
    assert_same_bits(rest, model.logits[30:])


def test_what_a_block_held_before_does_not_matter(model):
    """Blocks are not cleared: another sequence's keys behind the last position must not count."""
    other = model.ids[::-1].copy()
    feed(model.runner, Part(other, 0, [5]))
    assert_same_bits(feed_cut(model.runner, model.ids, [3, 20, 21], [5]), model.logits)


@pytest.mark.parametrize("prefetch", ["0", "1"])
def test_prefetch(model, monkeypatch, prefetch):
    monkeypatch.setenv("FASTLLM_PREFETCH", prefetch)
    runner = runner_of(model.checkpoint, n_threads=1, **model.options)
    try:
        assert_same_bits(feed_cut(runner, model.ids, [38, 39, 40], [1]), model.logits)
    finally:
        runner.close()


@pytest.mark.parametrize("max_batch_tokens", [1, 7])
def test_small_batches_only(model, max_batch_tokens):
    runner = runner_of(model.checkpoint, n_threads=2, n_batch=max_batch_tokens, **model.options)
    try:
        cuts = range(0, LENGTH, max_batch_tokens)
        assert_same_bits(feed_cut(runner, model.ids, cuts, [1]), model.logits)
    finally:
        runner.close()
