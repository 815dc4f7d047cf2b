"""What bench/off_grid.py promises: other numbers, the same function."""

import numpy as np
import pytest

from bench.off_grid import write
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models.bind import bind
from tests.golden.cases import case, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen2-yarn-tied", "qwen3", "llama-bias", "llama-tied", "gemma2", "gemma3"]
)
def test_the_function_stays_and_the_numbers_do_not(name, tmp_path):
    one = case(name)
    source = open_checkpoint(materialize_gguf(one, tmp_path))
    write(source, str(tmp_path / "off.gguf"), "f32")
    found = open_checkpoint(tmp_path / "off.gguf")
    bound = bind(found)
    logits = forward(bound.decoder, weights_of(bound, found), one.token_ids, n_ctx=one.n_ctx)
    np.testing.assert_allclose(logits, one.logits, atol=1e-3 * one.logits.std())
    for part in ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        values = found.read_float32(f"blk.0.{part}.weight") / source.read_float32(
            f"blk.0.{part}.weight"
        )
        assert all(np.ptp(row) > 0.1 for row in values)
