"""Reading configs: refusals by name, and nothing but our errors whatever a file says."""

import contextlib
import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models import roles
from fastllm.models.families import (
    ARCHITECTURES,
    GGUF_ARCHITECTURES,
    MODEL_TYPES,
    family_of_gguf,
    family_of_hf,
)
from fastllm.models.layers import MLP, mixers
from tests.golden.cases import case, cases, materialize_gguf
from tests.models.test_keys import JSON


def read_hf(config):
    family = family_of_hf(config)
    return family.decoder(family.config_from_hf(config), "hf")


@pytest.fixture(scope="module")
def gguf_headers(tmp_path_factory):
    """Metadata and tensor names of a few models."""
    headers = []
    for name in ("llama-rope-yarn", "gemma3", "phi3-longrope-long", "falcon-new", "opt-projected"):
        path = materialize_gguf(case(name), tmp_path_factory.mktemp(name))
        checkpoint = open_checkpoint(path)
        headers.append((checkpoint.metadata, sorted(checkpoint.tensors)))
    return headers


def test_every_family_of_the_golden_cases_is_in_all_tables():
    families = {family_of_hf(case.config) for case in cases()}
    assert families == set(ARCHITECTURES.values()) == set(MODEL_TYPES.values())
    assert {family.gguf_architecture for family in families} == set(GGUF_ARCHITECTURES)


def test_unknown_families_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="architectures is 'MambaForCausalLM'"):
        family_of_hf({"architectures": ["MambaForCausalLM"], "model_type": "llama"})
    with pytest.raises(UnsupportedError, match="model_type is 'mamba'"):
        family_of_hf({"model_type": "mamba"})
    with pytest.raises(UnsupportedError, match=r"general\.architecture is 'mamba'"):
        family_of_gguf({"general.architecture": "mamba"})
    with pytest.raises(FormatError, match="model_type is missing"):
        family_of_hf({})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', which is not built"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not built"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("qwen2-sliding", {"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("falcon", {"alibi": True}, "alibi is True, which is not built"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
        ("llama", {"head_dim": 5}, "5 of 5 dimensions"),
    ],
)
def test_variants_nobody_wrote_are_refused(name, change, message):
    with pytest.raises(UnsupportedError, match=message):
        read_hf({**case(name).config, **change})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"hidden_size": -48}, "hidden_size is -48"),
        ("llama", {"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ("llama", {"hidden_size": 50}, "no multiple of 4 heads"),
        ("llama", {"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers"),
        ("gemma3-multimodal", {"text_config": []}, "text_config"),
        ("llama", {"eos_token_id": ["a"]}, "eos_token_id is 'a'"),
    ],
)
def test_bad_values_are_named(name, change, message):
    with pytest.raises(FormatError, match=message):
        read_hf({**case(name).config, **change})


def test_experts_in_a_llama_file_are_refused(gguf_headers):
    metadata, tensor_names = gguf_headers[0]
    family = family_of_gguf(metadata)
    with pytest.raises(UnsupportedError, match=r"llama\.expert_count is 8"):
        family.config_from_gguf({**metadata, "llama.expert_count": 8}, tensor_names)


def test_relu_by_config_and_by_gguf_key(gguf_headers):
    config = {**case("llama").config, "hidden_act": "relu"}
    assert {mlp.act for mlp in mixers(read_hf(config), MLP)} == {"relu"}
    metadata, tensor_names = gguf_headers[0]
    family = family_of_gguf(metadata)
    read = family.config_from_gguf({**metadata, "fastllm.hidden_act": "relu"}, tensor_names)
    assert read.hidden_act == "relu"
    with pytest.raises(UnsupportedError, match=r"fastllm\.hidden_act is 'fatrelu'"):
        family.config_from_gguf({**metadata, "fastllm.hidden_act": "fatrelu"}, tensor_names)


def test_published_gemma3_text_config_is_filled_with_defaults():
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    decoder = read_hf(
        {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106],
         "text_config": text}
    )  # fmt: skip
    assert decoder.config.eos_token_ids == (1, 106)
    assert decoder.lm_head.weight == decoder.embed.weight
    assert [rope.theta for rope in decoder.ropes] == [1e6, 1e4]
    assert [rope.factor for rope in decoder.ropes] == [8.0, 1.0]
    slides = [attention.sliding_window for attention in decoder.attentions]
    assert slides[:6] == [1024] * 5 + [None]
    assert decoder.attentions[0].scale == 256**-0.5


def test_first_falcon_40b_config():
    decoder = read_hf(
        {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb", "n_layer": 2,
         "n_head": 8, "n_head_kv": 2, "hidden_size": 64, "vocab_size": 100, "alibi": False,
         "bias": False, "parallel_attn": True, "layer_norm_epsilon": 1e-5}
    )  # fmt: skip
    layer = decoder.layers[0]
    attention, mlp = layer.branches
    assert (attention.mixer.num_heads, attention.mixer.num_kv_heads) == (8, 2)
    assert attention.input_norm != mlp.input_norm
    assert layer.parallel


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), value=JSON)
def test_any_config_gives_a_decoder_or_our_error(seed, value):
    rng = random.Random(seed)
    config = copy.deepcopy(rng.choice(cases()).config)
    target = config
    nested = [entry for entry in config.values() if isinstance(entry, dict)]
    if nested and rng.random() < 0.5:
        target = rng.choice(nested)
    target[rng.choice(sorted(target))] = value
    with contextlib.suppress(FastLLMError):
        decoder = read_hf(config)
        assert len(roles.matrices(decoder)) >= 1


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), value=JSON)
def test_any_gguf_metadata_gives_a_decoder_or_our_error(gguf_headers, seed, value):
    rng = random.Random(seed)
    metadata, tensor_names = rng.choice(gguf_headers)
    metadata = {**metadata, rng.choice(sorted(metadata)): value}
    with contextlib.suppress(FastLLMError):
        family = family_of_gguf(metadata)
        decoder = family.decoder(family.config_from_gguf(metadata, tensor_names), "gguf")
        assert len(roles.matrices(decoder)) >= 1


@pytest.mark.parametrize(
    ("change", "scalar"),
    [
        ({"gemma3.block_count": 4}, 12.0),
        ({"gemma3.block_count": 62}, 40 // 4),
        ({"gemma3.block_count": 62, "gemma3.attention.scale": 0.25}, 16.0),
    ],
)
def test_gguf_files_of_gemma_do_not_say_what_divides_scores(gguf_headers, change, scalar):
    metadata, tensor_names = gguf_headers[1]
    plain = {key: value for key, value in metadata.items() if "attention.s" not in key}
    config = family_of_gguf(plain).config_from_gguf({**plain, **change}, tensor_names)
    assert config.query_pre_attn_scalar == pytest.approx(scalar)


def test_sliding_window_of_mistral_null_and_absent():
    config = dict(case("mistral").config)
    assert read_hf({**config, "sliding_window": None}).attentions[0].sliding_window is None
    del config["sliding_window"]
    assert read_hf(config).attentions[0].sliding_window == 4096
