"""Weights that are not numbers show in the logits; they are not rounded to something finite."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastllm.formats.checkpoint import open_checkpoint
from tests.golden.cases import case, materialize
from tests.step.batches import Part, feed
from tests.step.models import quantized, runner_of

VOCAB = 131
MATRICES = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
)


def damaged(folder, name, row, column, value):
    """The golden llama with one weight changed."""
    folder = materialize(case("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][row, column] = value
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize("quant", [None, "f16"])
@pytest.mark.parametrize("name", MATRICES)
def test_a_nan_weight_gives_nan_logits(tmp_path, name, quant):
    checkpoint = damaged(tmp_path / "model", name, 5, 7, np.nan)
    runner = runner_of(checkpoint, n_threads=1, quant=quant)
    try:
        # attention may look away from a NaN key's head, but not at the token itself
        assert np.isnan(feed(runner, Part(range(40), 0, [0]))).all()
        assert np.isnan(feed(runner, Part([1], 0, [0]))).all()
    finally:
        runner.close()


def test_a_nan_in_the_head_is_one_logit(tmp_path):
    checkpoint = damaged(tmp_path / "model", "lm_head.weight", 5, 7, np.nan)
    runner = runner_of(checkpoint, n_threads=1)
    try:
        logits = feed(runner, Part(range(20), 0, [0]))
        assert (np.isnan(logits) == (np.arange(VOCAB) == 5)).all()
    finally:
        runner.close()


def test_a_nan_embedding_is_seen_from_its_token_on(tmp_path):
    checkpoint = damaged(tmp_path / "model", "model.embed_tokens.weight", 7, 3, np.nan)
    runner = runner_of(checkpoint, n_threads=1, num_blocks=2)
    try:
        nan = np.isnan(feed(runner, Part([1, 2, 3, 7, 4, 5], 0, [0]))).all(axis=1)
        assert nan.tolist() == [False] * 3 + [True] * 3
        # another sequence in the same batch is not touched
        both = feed(runner, Part([1, 7, 2], 0, [0]), Part([1, 2, 3], 0, [1]))
        assert np.isnan(both).all(axis=1).tolist() == [False, True, True, False, False, False]
    finally:
        runner.close()


@pytest.mark.parametrize("type_", ["q4_0", "q8_0", "q4_k", "q6_k"])
def test_a_nan_scale_gives_nan_logits(tmp_path, type_):
    checkpoint = quantized(tmp_path / "model.gguf", type_)
    tensor = checkpoint.tensors["blk.0.ffn_up.weight"]
    at = {"q4_0": 0, "q8_0": 0, "q4_k": 0, "q6_k": 208}[type_]
    with open(tensor.path, "r+b") as file:
        file.seek(tensor.offset + at)
        file.write(np.float16(np.nan).tobytes())
    runner = runner_of(open_checkpoint(tensor.path), n_threads=1)
    try:
        assert np.isnan(feed(runner, Part(range(20), 0, [0]))).all()
    finally:
        runner.close()
