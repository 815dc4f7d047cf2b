"""Every family and variant against transformers: open, bind, compute, from both formats."""

import numpy as np
import pytest

from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models.bind import bind
from tests.golden.cases import cases, materialize, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of

# Largest difference allowed, in units of the logits' standard deviation. The reference itself is
# float32, so this is its rounding, not ours.
TOLERANCE = 2e-4


@pytest.mark.parametrize("write", [materialize, materialize_gguf], ids=["hf", "gguf"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_logits_are_those_of_transformers(case, write, tmp_path):
    checkpoint = open_checkpoint(write(case, tmp_path / "model"))
    bound = bind(checkpoint)
    logits = forward(bound.decoder, weights_of(bound, checkpoint), case.token_ids, n_ctx=case.n_ctx)
    difference = np.abs(logits - case.logits).max() / case.logits.std()
    assert difference <= TOLERANCE
