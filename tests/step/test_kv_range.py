"""Keys and values that half precision cannot hold: an error for their sequence, for nobody else."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastllm.errors import KVRangeError, UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.request import SamplingParams
from tests.by_hand import add, engine_of, finish, run, sequence
from tests.golden.cases import case, materialize
from tests.step.batches import Part, assert_same_bits, batch_of, feed
from tests.step.models import runner_of

LARGE = 7  # the token whose keys or values are too large
BEYOND = 1e7


@pytest.fixture(params=["k_proj", "v_proj"])
def checkpoint(request, tmp_path):
    """The golden llama; one token's embedding has a direction that a projection blows up."""
    folder = materialize(case("llama"), tmp_path / "model")
    tensors = {
        name: array.copy() for name, array in load_file(folder / "model.safetensors").items()
    }
    embed = tensors["model.embed_tokens.weight"]
    embed[:, 3] = 0
    embed[LARGE, 3] = np.abs(embed).max()
    tensors["model.layers.0.input_layernorm.weight"][3] = 1
    tensors[f"model.layers.0.self_attn.{request.param}.weight"][:, 3] = BEYOND
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.fixture(params=[1, 2, 5])
def num_threads(request):
    return request.param


def test_the_error_names_sequence_and_remedy(checkpoint, num_threads):
    runner = runner_of(checkpoint, n_threads=num_threads, num_blocks=4, kv_type="f16")
    try:
        sound = feed(runner, Part(range(8, 28), 0, [0]))
        batch = batch_of(
            Part(range(8, 28), 0, [0]), Part([1, 2, LARGE, 3], 0, [1]), Part([4, 5], 0, [2])
        )
        for _ in range(20):
            with pytest.raises(KVRangeError, match=r'65504.*kv_type="f32"') as caught:
                runner.forward(batch)
            assert isinstance(caught.value, UnsupportedError)
            assert "\n" not in str(caught.value)
            assert caught.value.sequence == 1
            # the next step is as if nothing had been
            assert_same_bits(feed(runner, Part(range(8, 28), 0, [0])), sound)
        with pytest.raises(KVRangeError):  # a prompt without logits, and one token alone
            runner.forward(batch_of(Part([LARGE], 0, [3]), rows=[]))
        with pytest.raises(KVRangeError) as caught:  # in parts, too
            runner.go_on(runner.begin(batch), 1)
        assert caught.value.sequence == 1
        # what others had in the cache is there still
        assert_same_bits(feed(runner, Part([27], 19, [0])), sound[19:])
    finally:
        runner.close()


@pytest.mark.parametrize("kv_type", ["i16", "f32"])
def test_other_types_hold_them(checkpoint, kv_type):
    runner = runner_of(checkpoint, n_threads=2, num_blocks=1, kv_type=kv_type)
    try:
        assert np.isfinite(feed(runner, Part([1, 2, LARGE, 3], 0, [0]))).all()
    finally:
        runner.close()


def test_the_largest_half_is_no_error(tmp_path):
    """What is a little below 65504 is stored, a little above is refused."""
    folder = materialize(case("llama"), tmp_path / "model")
    tensors = {
        name: array.copy() for name, array in load_file(folder / "model.safetensors").items()
    }
    # the norm makes sqrt(columns) of the one value that is not 0, less 0.03 % (its eps)
    embed = tensors["model.embed_tokens.weight"]
    embed[:] = 0
    embed[:, 0] = 1
    columns = embed.shape[1]
    tensors["model.layers.0.input_layernorm.weight"][:] = 1
    value = tensors["model.layers.0.self_attn.v_proj.weight"]
    value[:] = 0

    def values_of(size):
        value[:, 0] = np.float32(size / np.sqrt(columns))
        save_file(tensors, folder / "model.safetensors")
        runner = runner_of(open_checkpoint(folder), n_threads=1, num_blocks=1, kv_type="f16")
        try:
            return feed(runner, Part([1], 0, [0]))
        finally:
            runner.close()

    assert np.isfinite(values_of(65500)).all()
    with pytest.raises(KVRangeError):
        values_of(65540)


def test_the_engine_ends_that_request_alone(checkpoint):
    runner = runner_of(checkpoint, n_threads=2, num_blocks=8, kv_type="f16")
    engine = engine_of(runner)
    try:
        expected = run(engine, range(8, 28), temperature=0)[:2]
        seqs = [
            sequence(prompt, SamplingParams(max_tokens=6, temperature=0))
            for prompt in (range(8, 28), [1, 2, LARGE, 3], range(8, 28))
        ]
        for seq in seqs:
            add(engine, seq)
        assert finish(engine, seqs[0])[:2] == expected
        with pytest.raises(KVRangeError):
            finish(engine, seqs[1])
        assert finish(engine, seqs[2])[:2] == expected
    finally:
        runner.close()
