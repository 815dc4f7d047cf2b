"""What bench/off_grid.py promises: other numbers, the same function."""

import numpy as np
import pytest

from bench.off_grid import write
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models.bind import bind
from tests.golden.cases import case, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of


@pytest.mark.parametrize("name", ["qwen2", "qwen2-yarn-tied", "qwen3", "llama-bias", "llama-tied"])
def test_the_function_stays_and_the_numbers_do_not(name, tmp_path):
    one = case(name)
    source = open_checkpoint(materialize_gguf(one, tmp_path))
    write(source, str(tmp_path / "off.gguf"), "f32")
    found = open_checkpoint(tmp_path / "off.gguf")
    bound = bind(found)
    logits = forward(bound.decoder, weights_of(bound, found), one.token_ids, n_ctx=one.n_ctx)
    np.testing.assert_allclose(logits, one.logits, atol=1e-3 * one.logits.std())
    before, after = (c.read_float32("blk.0.ffn_down.weight").reshape(-1) for c in (source, found))
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.2
