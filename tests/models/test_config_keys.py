"""Whatever key of config.json changes the numbers is honoured as transformers does, or refused."""

import re

import numpy as np
import pytest

from fastllm.errors import FormatError, UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models import foreign_keys
from fastllm.models.bind import bind
from fastllm.models.families import GGUF_ARCHITECTURES, family_of_gguf, family_of_hf
from fastllm.models.keys import Keys
from tests.golden.cases import cases, materialize_gguf
from tests.golden.saved import EVERY, families, materialize, reads, saved
from tests.naive.forward import forward
from tests.naive.weights import weights_of

TOLERANCE = 2e-4

# What may be refused: the changes of these keys that are not built, in any family.
REFUSED = {
    "hidden_act": {"quick_gelu"},
    "is_causal": {False},
    "use_bidirectional_attention": {True},
    "attention_chunk_size": {4},
    "alibi": {True},
    "clip_qkv": {0.1},
    "attention_multiplier": {0.5},
    "residual_multiplier": {0.5},
    "embedding_multiplier": {2.0},
    "logits_scaling": {2.0},
    "logit_scale": {0.5},
    "num_experts": {4},
    "num_local_experts": {4},
    "use_qk_norm": {True},
    "apply_residual_connection_post_layernorm": {True},
    "layer_norm_elementwise_affine": {False},
}
# The same for keys that some families read: there a refusal would be a step back.
READ_BY = {
    "attention_bias": {"llama", "qwen3", "gemma2", "gemma3", "gemma3-multimodal"},
    "mlp_bias": {"llama"},
    "query_pre_attn_scalar": {"gemma2", "gemma3", "gemma3-multimodal"},
    "attn_logit_softcapping": {"gemma2"},
    # transformers caps logits in the text model only
    "final_logit_softcapping": {"gemma2", "gemma3"},
    "partial_rotary_factor": {"phi3"},
    "parallel_attn": {"falcon"},
    "layer_types": {"mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3-multimodal"},
    "head_dim": {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "gemma3-multimodal",
        "phi3",
    },
}


def may_be_refused(model):
    """Whether a change asks for something that is not built in this family."""
    for key, value in model.change.items():
        if key in ("rope_parameters", "rope_scaling"):
            return rope_may_be_refused(model, value)
        if isinstance(value, (str, bool, int, float)) and value in REFUSED.get(key, ()):
            return True
        if key in READ_BY and model.family not in READ_BY[key]:
            return True
        if key == "layer_types" and model.change.get("use_sliding_window") is False:
            return True
    return False


def rope_may_be_refused(model, section):
    if not isinstance(section, dict):
        return "gemma3" in model.family and "type" in model.change.get("rope_scaling", ())
    if section.get("rope_type", section.get("type")) in ("dynamic", "proportional"):
        return True
    nested = "full_attention" in section
    if nested != ("gemma3" in model.family) and "rope_parameters" in model.change:
        return True
    if nested and "truncate" in section["full_attention"]:
        return True
    return "partial_rotary_factor" in section and model.family != "phi3"


def keys_of(change):
    """All keys of a change, nested ones too."""
    for key, value in change.items():
        yield key
        if isinstance(value, dict):
            yield from keys_of(value)


MODELS = [model for family in families() for model in saved(family)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.family} {model.name}")
def test_a_changed_key_is_followed_or_refused_by_name(model, tmp_path):
    checkpoint = open_checkpoint(materialize(model, tmp_path / "model"))
    try:
        bound = bind(checkpoint)
    except (UnsupportedError, FormatError) as error:
        message = str(error).removeprefix(checkpoint.path)
    else:
        logits = forward(bound.decoder, weights_of(bound, checkpoint), model.token_ids)[-1]
        assert np.abs(logits[::EVERY] - model.logits).max() <= TOLERANCE * model.logits.std()
        return
    assert may_be_refused(model), message
    # by the key, or by the tensors that there should be or not
    assert any(f"{key} " in message or f"{key}:" in message for key in keys_of(model.change)) or (
        "tensor" in message
    )


def test_the_changes_have_effects():
    """Enough of them change what transformers computes, in every family."""
    for family in families():
        assert sum(model.has_effect for model in saved(family)) >= 9
    assert sum(model.has_effect and not may_be_refused(model) for model in MODELS) >= 150


ODD = {"odd": 1}  # no value of any key


def check_key(read, key, neutral):
    """Nobody ignores a key: it is read, so that an odd value is wrong, or refused by name."""
    with pytest.raises((UnsupportedError, FormatError), match=rf"\b{re.escape(key)} is ") as caught:
        read(ODD)
    if caught.type is UnsupportedError:
        before = read(None)
        assert all(read(value) == before for value in neutral)


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("key", foreign_keys.HF)
def test_foreign_keys_of_config_json(family, key):
    config = saved(family)[0].config
    reader = family_of_hf(config)

    def read(value):
        if "text_config" in config:
            return reader.config_from_hf(
                {**config, "text_config": {**config["text_config"], key: value}}
            )
        return reader.config_from_hf({**config, key: value})

    check_key(read, key, foreign_keys.HF[key])


# What transformers' code reads and what changes nothing of a text model's logits.
HARMLESS = {
    # only while it trains
    "attention_dropout", "dropout", "hidden_dropout", "layerdrop", "resid_pdrop",
    "classifier_dropout", "initializer_range",
    # how it is run, and what else is returned
    "_attn_implementation", "dtype", "get_text_config", "output_attentions",
    "output_hidden_states", "use_cache", "pad_token_id", "return_dict",
    # other heads, and pictures
    "num_labels", "problem_type", "vision_config", "mm_tokens_per_image", "image_token_id",
    "text_config",
}  # fmt: skip
# Read for some values of other keys only.
CONDITIONAL = {
    "falcon": {"num_kv_heads"},
    "phi3": {"original_max_position_embeddings"},
    "qwen3": {"sliding_window"},
}


@pytest.mark.parametrize("family", families())
def test_what_transformers_reads_of_a_config(family, monkeypatch):
    """Each key is looked for, refused as a foreign one, or known to be harmless."""
    asked, find = set(), Keys.find

    def recorded(self, keys):
        asked.update(keys)
        return find(self, keys)

    monkeypatch.setattr(Keys, "find", recorded)
    config = saved(family)[0].config
    family_of_hf(config).config_from_hf(config)
    known = asked | HARMLESS | set(foreign_keys.HF) | CONDITIONAL.get(family, set())
    assert set(reads(family)) <= known
    assert len(reads(family)) > 8


@pytest.fixture(scope="module")
def gguf_headers(tmp_path_factory):
    """For each architecture of GGUF files: metadata and tensor names of one model."""
    found = {}
    for case in cases():
        architecture = family_of_hf(case.config).gguf_architecture
        if architecture not in found:
            path = materialize_gguf(case, tmp_path_factory.mktemp(architecture))
            checkpoint = open_checkpoint(path)
            found[architecture] = (checkpoint.metadata, sorted(checkpoint.tensors))
    return found


@pytest.mark.parametrize("architecture", sorted(GGUF_ARCHITECTURES))
@pytest.mark.parametrize("key", foreign_keys.GGUF)
def test_foreign_keys_of_gguf_metadata(gguf_headers, architecture, key):
    metadata, names = gguf_headers[architecture]
    reader = family_of_gguf(metadata)
    name = f"{architecture}.{key}"
    check_key(
        lambda value: reader.config_from_gguf({**metadata, name: value}, names),
        name,
        foreign_keys.GGUF[key],
    )


def test_two_families_in_one_config_are_refused():
    config = saved("mistral")[0].config
    with pytest.raises(UnsupportedError, match="'MistralForCausalLM' and model_type 'llama'"):
        family_of_hf({**config, "model_type": "llama"})
    assert family_of_hf({**config, "model_type": "something_else"}) is family_of_hf(config)
