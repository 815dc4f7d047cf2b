"""Every family and variant through the native step, against transformers, from both formats."""

import numpy as np
import pytest

from fastllm.formats.checkpoint import open_checkpoint
from tests.golden.cases import cases, materialize, materialize_gguf
from tests.golden.saved import EVERY, NUM_TOKENS, families, saved
from tests.golden.saved import materialize as materialize_saved
from tests.step.batches import Part, assert_same_bits, feed, feed_cut, regime_of
from tests.step.models import runner_of

# Largest difference allowed, in units of the logits' standard deviation.
TOLERANCE = 2e-4
# With keys and values in half precision, 11 bits instead of 24, or in codes of about 15.
TOLERANCE_16 = {"f16": 2e-2, "i16": 2e-3}
BLOCKS = (3, 1)


@pytest.mark.parametrize("write", [materialize, materialize_gguf], ids=["hf", "gguf"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_logits_are_those_of_transformers(case, write, tmp_path):
    checkpoint = open_checkpoint(write(case, tmp_path / "model"))
    runner = runner_of(checkpoint, n_threads=2, n_ctx=case.n_ctx, num_blocks=4)
    try:
        ids = case.token_ids
        regime = regime_of(runner, len(ids))
        logits = feed(runner, Part(ids, 0, BLOCKS, regime))
        assert np.abs(logits - case.logits).max() / case.logits.std() <= TOLERANCE
        # the same bits when the prompt comes in pieces, the last ones token by token
        cuts = (len(ids) // 2, *range(len(ids) - 3, len(ids)))
        assert_same_bits(feed_cut(runner, ids, cuts, BLOCKS, regime), logits)
    finally:
        runner.close()


@pytest.mark.parametrize("family", families())
def test_checkpoints_as_transformers_saves_them(family, tmp_path):
    model = saved(family)[0]
    runner = runner_of(open_checkpoint(materialize_saved(model, tmp_path / "model")), n_threads=2)
    try:
        logits = feed(runner, Part(model.token_ids, 0, [0]), rows=[NUM_TOKENS - 1])[0, ::EVERY]
        assert np.abs(logits - model.logits).max() / model.logits.std() <= TOLERANCE
    finally:
        runner.close()


@pytest.mark.parametrize("kv_type", ["f16", "i16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon", "opt"])
def test_rounded_keys_and_values_are_close(name, kv_type, tmp_path):
    from tests.step.models import golden

    checkpoint, case = golden(name, tmp_path / "model")
    runner = runner_of(checkpoint, n_threads=1, n_ctx=case.n_ctx, kv_type=kv_type)
    try:
        logits = feed(runner, Part(case.token_ids, 0, [0]))
        difference = np.abs(logits - case.logits).max() / case.logits.std()
        assert TOLERANCE / 100 < difference <= TOLERANCE_16[kv_type]
    finally:
        runner.close()
