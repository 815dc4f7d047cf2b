"""Quantized models against the oracle with the same weights in float32."""

import numpy as np
import pytest

from fastllm.errors import UnsupportedError
from fastllm.kernels.layouts import LAYOUTS
from fastllm.models.bind import bind
from tests.kernels.samples import FLOATS
from tests.naive.forward import forward
from tests.naive.weights import weights_of
from tests.step.batches import Part, assert_same_bits, feed, feed_cut
from tests.step.models import VOCAB, quantized, runner_of

# Root mean square of the difference, in units of the logits' standard deviation. Activations are
# rounded to 8 bits with a scale per 32 (block32) or per 256 values (K-quants), keys and values to
# half precision.
FLOAT_ERROR = 1e-3
BLOCK32_ERROR = 0.03
BLOCK256_ERROR = 0.06
ERRORS = {
    name: FLOAT_ERROR if name in FLOATS else BLOCK32_ERROR if layout.activations == "q32"
    else BLOCK256_ERROR
    for name, layout in LAYOUTS.items()
}  # fmt: skip


@pytest.mark.parametrize("type_", LAYOUTS)
def test_against_the_oracle(load, tmp_path, type_):
    assert difference(load, quantized(tmp_path / "model.gguf", type_, seed=3)) <= ERRORS[type_]


# As files mix them: better types for what matters more, others where rows are no whole
# super-blocks, floats where a converter left them. A mix needs activations in several layouts.
MIXES = {
    "q4_k": {"attn_v": "q6_k", "ffn_down": "q6_k", "output": "q6_k", "token_embd": "q8_0"},
    "q3_k": {"attn_q": "q8_0", "attn_k": "f16", "ffn_gate": "bf16", "attn_output": "q5_0"},
    "q4_0": {"attn_v": "f32", "ffn_up": "q5_1", "ffn_down": "f16", "output": "iq4_nl"},
}


@pytest.mark.parametrize("type_", MIXES)
def test_mixed_types(load, tmp_path, type_):
    checkpoint = quantized(tmp_path / "model.gguf", type_, types=MIXES[type_], seed=3)
    assert difference(load, checkpoint) <= BLOCK256_ERROR


@pytest.mark.parametrize("num_heads", [64, 65, 71, 128])
def test_many_heads_share_a_kv_head(load, tmp_path, num_heads):
    """More query rows of one token than a tile usually has (falcon-7b: 71)."""
    checkpoint = quantized(tmp_path / "model.gguf", "f32", heads=(num_heads, 4))
    assert difference(load, checkpoint) <= FLOAT_ERROR


def test_more_heads_than_are_built(tmp_path):
    checkpoint = quantized(tmp_path / "model.gguf", "f32", heads=(129, 2))
    with pytest.raises(UnsupportedError, match="129 query heads share a kv head; at most 128"):
        runner_of(checkpoint)


def difference(load, checkpoint):
    """Root mean square against the oracle; the same bits in pieces."""
    bound = bind(checkpoint)
    ids = np.random.default_rng(4).integers(0, VOCAB, 40)
    expected = forward(bound.decoder, weights_of(bound, checkpoint), ids)
    runner = load(checkpoint, n_threads=2)
    found = feed(runner, Part(ids, 0, [0]))
    assert_same_bits(feed_cut(runner, ids, [9, 30, 31, 32], [0]), found)
    return np.sqrt(((found - expected) ** 2).mean()) / expected.std()
