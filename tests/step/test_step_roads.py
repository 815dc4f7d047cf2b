"""The step on every road that this CPU can run: close to each other, and each true to itself."""

import numpy as np
import pytest

from fastllm.step.runner import Runner
from tests.kernels.samples import POSSIBLE_ROADS
from tests.step.batches import Part, assert_same_bits, feed, feed_cut
from tests.step.models import VOCAB, golden, quantized

# The same integer sums, floats rounded in another order: in units of the logits' deviation. A value
# that is rounded to another code on the way changes a logit by a step of the activations' grid.
CLOSE = 1e-3
TYPES = ("q4_0", "q5_1", "q8_0", "iq4_nl", "q2_k", "q4_k", "q6_k", "iq4_xs", "f16", "bf16")
GOLDEN = ("gemma2", "falcon-new", "opt", "qwen3")


@pytest.fixture(scope="module", params=[*TYPES, *GOLDEN])
def model(request, tmp_path_factory):
    """(checkpoint, ids, logits on the best road)."""
    folder = tmp_path_factory.mktemp("roads")
    if request.param in TYPES:
        checkpoint, vocab = quantized(folder / "model.gguf", request.param), VOCAB
    else:
        checkpoint, case = golden(request.param, folder / "model")
        vocab = case.config["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocab, 35).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTLLM_ROAD", POSSIBLE_ROADS[0].name)
        runner = Runner(checkpoint, n_threads=2, n_ctx=64, num_blocks=2, kv_type="f16")
        logits = feed(runner, Part(ids, 0, [0]))
        runner.close()
    return checkpoint, ids, logits


@pytest.mark.parametrize("road", POSSIBLE_ROADS[1:], ids=lambda road: road.name)
def test_roads_agree(model, road, monkeypatch):
    checkpoint, ids, expected = model
    monkeypatch.setenv("FASTLLM_ROAD", road.name)
    runner = Runner(checkpoint, n_threads=2, n_ctx=64, num_blocks=2, kv_type="f16")
    try:
        assert runner.isa == road.name
        logits = feed(runner, Part(ids, 0, [1]))
        difference = np.abs(logits - expected).max() / expected.std()
        assert difference <= CLOSE
        for cuts in ([1, 2, 30, 31, 32, 33], [20, 27], range(35)):
            assert_same_bits(feed_cut(runner, ids, cuts, [0]), logits)
        both = feed(runner, Part(ids[:9], 0, [0]), Part(ids[:1], 0, [1]))
        assert_same_bits(both, logits[[*range(9), 0]])
    finally:
        runner.close()
