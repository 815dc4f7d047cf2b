"""Quantized models against the oracle with the same weights in float32."""

import numpy as np
import pytest

from fastllm.kernels.layouts import LAYOUTS
from fastllm.models.bind import bind
from tests.kernels.samples import FLOATS
from tests.naive.forward import forward
from tests.naive.weights import weights_of
from tests.step.batches import Part, feed
from tests.step.models import VOCAB, quantized

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
    checkpoint = quantized(tmp_path / "model.gguf", type_, seed=3)
    bound = bind(checkpoint)
    ids = np.random.default_rng(4).integers(0, VOCAB, 40)
    expected = forward(bound.decoder, weights_of(bound, checkpoint), ids)
    found = feed(load(checkpoint, n_threads=2), Part(ids, 0, [0]))
    difference = np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    assert difference <= ERRORS[type_]
