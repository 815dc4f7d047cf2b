"""The step on every road that this CPU can run: close to each other, and each true to itself."""

import numpy as np
import pytest

from tests.golden.cases import cases
from tests.kernels.samples import FLOATS, POSSIBLE_ROADS
from tests.step.batches import Part, assert_same_bits, feed, feed_cut
from tests.step.models import VOCAB, golden, quantized, runner_of

# Largest difference where nothing is rounded to codes, in units of the logits' deviation.
CLOSE_FLOAT = 1e-3
# Integer sums are the same on every road, but a float rounded differently may become another code
# on the way, and from there on all rounding differs: root mean square, as far as from the oracle.
CLOSE_QUANTIZED = 0.05
TYPES = ("q4_0", "q5_1", "q8_0", "iq4_nl", "q2_k", "q4_k", "q6_k", "iq4_xs", "f16", "bf16")
GOLDEN = tuple(case.name for case in cases())


@pytest.fixture(scope="module", params=[*TYPES, *GOLDEN])
def model(request, tmp_path_factory):
    """(checkpoint, ids, logits on the best road, whether nothing is rounded to codes)."""
    folder = tmp_path_factory.mktemp("roads")
    if request.param in TYPES:
        checkpoint, vocab = quantized(folder / "model.gguf", request.param), VOCAB
        is_float = request.param in FLOATS
    else:
        checkpoint, case = golden(request.param, folder / "model")
        vocab, is_float = case.logits.shape[1], True
    ids = np.random.default_rng(0).integers(0, vocab, 35).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTLLM_ROAD", POSSIBLE_ROADS[0].name)
        runner = runner_of(checkpoint, n_threads=2, n_ctx=64, num_blocks=2, kv_type="f32")
        logits = feed(runner, Part(ids, 0, [0]))
        runner.close()
    return checkpoint, ids, logits, is_float


@pytest.mark.parametrize("road", POSSIBLE_ROADS[1:], ids=lambda road: road.name)
@pytest.mark.parametrize("kv_type", ["f32", "f16", "i16"])
def test_roads_agree(model, road, kv_type, monkeypatch):
    checkpoint, ids, expected, is_float = model
    monkeypatch.setenv("FASTLLM_ROAD", road.name)
    runner = runner_of(checkpoint, n_threads=2, n_ctx=64, num_blocks=2, kv_type=kv_type)
    try:
        assert runner.isa == road.name
        logits = feed(runner, Part(ids, 0, [1]))
        difference = np.abs(logits - expected) / expected.std()
        if is_float and kv_type == "f32":
            assert difference.max() <= CLOSE_FLOAT
        else:
            assert np.sqrt((difference**2).mean()) <= CLOSE_QUANTIZED
        if {road.name, POSSIBLE_ROADS[0].name} == {"amx", "avx512"} and kv_type == "f32":
            assert_same_bits(logits, expected)
        for cuts in ([1, 2, 30, 31, 32, 33], [20, 27], range(35)):
            assert_same_bits(feed_cut(runner, ids, cuts, [0]), logits)
        both = feed(runner, Part(ids[:9], 0, [0]), Part(ids[:1], 0, [1]))
        assert_same_bits(both, logits[[*range(9), 0]])
    finally:
        runner.close()
    alone = runner_of(checkpoint, n_threads=1, n_ctx=64, num_blocks=2, kv_type=kv_type)
    try:
        assert_same_bits(feed_cut(alone, ids, [17], [1]), logits)
    finally:
        alone.close()
