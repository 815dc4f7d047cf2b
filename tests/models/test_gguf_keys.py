"""Whatever key of GGUF metadata changes the numbers is honoured as llama.cpp does, or refused."""

import numpy as np
import pytest

from fastllm.errors import FormatError, UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models.bind import bind
from fastllm.models.config_keys import gguf_tokens
from fastllm.models.keys import Keys
from tests.golden.gguf_changes import EVERY, FACTORS, FREQS, changed, write
from tests.naive.forward import forward
from tests.naive.weights import weights_of

TOLERANCE = 5e-3  # llama.cpp looks GELU up in a table of half precision

REFUSED = {
    "rope.scaling.alpha", "rope.dimension_sections", "attention.causal", "attention.clamp_kqv",
    "attention.max_alibi_bias", "attention.temperature_scale", "logit_scale", "embedding_scale",
    "residual_scale", "use_parallel_residual",
}  # fmt: skip
# Some read these, the others refuse them.
READ_BY = {
    "rope.freq_base_swa": {"gemma3"},
    "attn_logit_softcapping": {"gemma2"},
    "final_logit_softcapping": {"gemma2", "gemma3"},
    "attention.scale": {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"},
    "attention.sliding_window": {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"},
}
# What the file says and llama.cpp leaves alone in these architectures: converters copy the first
# two from config.json, where transformers honours them; the rest is what it means elsewhere.
WE_READ = {
    "rope.scaling.yarn_attn_factor": READ_BY["attention.scale"] | {"falcon"},
    "rope.scaling.yarn_log_multiplier": READ_BY["attention.scale"] | {"falcon"},
    "attention.scale": READ_BY["attention.scale"],
    "attention.sliding_window": {"llama", "qwen2", "qwen3", "phi3"},
    "hidden_activation": READ_BY["attention.scale"] | {"falcon"},
}
MODELS = changed()


def is_among(model, table):
    return any(
        model.name in table[key] for key, value in model.change.items() if key in table and value
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.name} {model.change}")
def test_a_changed_key_is_followed_or_refused_by_name(model, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, model.name, model.change))
    asked = [key for key, value in model.change.items() if value is not None]
    refused = [
        key for key in asked
        if key in REFUSED or (key in READ_BY and model.name not in READ_BY[key])
    ]  # fmt: skip
    if refused:
        with pytest.raises(UnsupportedError, match=refused[0]):
            bind(checkpoint)
        return
    bound = bind(checkpoint)
    logits = forward(bound.decoder, weights_of(bound, checkpoint), model.token_ids)[-1, ::EVERY]
    difference = np.abs(logits - model.logits).max() / model.logits.std()
    if is_among(model, WE_READ):
        assert difference > 10 * TOLERANCE
    else:
        assert difference <= TOLERANCE


def test_the_changes_have_effects():
    for name in {model.name for model in MODELS}:
        assert sum(model.has_effect for model in MODELS if model.name == name) >= 10
    tables = [model for model in MODELS if FACTORS in model.change or FREQS in model.change]
    assert {model.name for model in tables} == {"llama", "phi3"}


@pytest.mark.parametrize("name", ["bos", "eos", "eot", "eom"])
@pytest.mark.parametrize("value", [(1 << 32) - 1, -1, None], ids=["uint32", "int32", "absent"])
def test_minus_one_names_no_token(name, value):
    ids = {"bos": 1, "eos": 2, "eot": 3, "eom": 4, name: value}
    metadata = {f"tokenizer.ggml.{which}_token_id": token for which, token in ids.items()}
    bos, ends = gguf_tokens(Keys(metadata, "GGUF metadata", "llama."))
    assert bos == (None if name == "bos" else 1)
    assert ends == tuple(ids[which] for which in ("eos", "eot", "eom") if which != name)


@pytest.mark.parametrize("value", [-2, 1 << 32, 1.5, "2", True])
def test_other_numbers_are_no_token(value):
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.eos_token_id is"):
        gguf_tokens(Keys({"tokenizer.ggml.eos_token_id": value}, "GGUF metadata", "llama."))


def test_several_end_tokens_under_one_key_are_named():
    metadata = {"tokenizer.ggml.eos_token_id": np.array([1, 106], np.uint32)}
    with pytest.raises(UnsupportedError, match=r"eos_token_id is \[1, 106\], different numbers"):
        gguf_tokens(Keys(metadata, "GGUF metadata", "llama."))
