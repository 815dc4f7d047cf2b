import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.config import RopeConfig
from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from fastllm.models.families import family_of_hf
from fastllm.models.keys import MAX_SIZE, Keys
from fastllm.models.rope import attention_factor, cos_sin, inv_freq, max_positions, short_context
from fastllm.models.rope_keys import HF_KEYS, HF_SCALINGS, rope_from_gguf, rope_from_hf
from tests.golden.cases import case

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
# transformers computes frequencies in float32.
RELATIVE_ERROR = 5e-7


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_frequencies_are_those_of_transformers(golden):
    config = golden["config"]
    max_positions = config["max_position_embeddings"]
    rope = rope_from_hf(Keys(config, "config.json"), 16, max_positions, partial=True)
    expected = np.array(golden["inv_freq"])
    np.testing.assert_allclose(inv_freq(rope, golden["n_ctx"]), expected, rtol=RELATIVE_ERROR)
    assert attention_factor(rope, golden["n_ctx"]) == pytest.approx(golden["attention_factor"])


def test_longrope_changes_beyond_the_trained_context():
    rope = RopeConfig(
        rotary_dim=4,
        scaling="longrope",
        original_max_position_embeddings=100,
        short_factor=(1.0, 2.0),
        long_factor=(4.0, 8.0),
    )
    np.testing.assert_allclose(inv_freq(rope, 100), [1.0, 0.01 / 2])
    np.testing.assert_allclose(inv_freq(rope, 101), [1.0 / 4, 0.01 / 8])


def test_tables_from_the_file_divide_frequencies():
    rope = RopeConfig(rotary_dim=4, freq_factors=(2.0, 5.0))
    np.testing.assert_allclose(inv_freq(rope, 1), [1 / 2, 0.01 / 5])


def test_far_positions_keep_their_angles():
    cos, sin = cos_sin(RopeConfig(rotary_dim=2), 1 << 20, np.array([1_000_003]))
    assert cos[0, 0] == np.float32(np.cos(1_000_003.0))
    assert sin[0, 0] == np.float32(np.sin(1_000_003.0))


@given(
    theta=st.floats(1.001, 1e8),
    pairs=st.integers(1, 20),
    scaling=st.sampled_from(["none", "linear", "llama3", "yarn"]),
    factor=st.floats(0.5, 100),
    original=st.integers(2, 100_000),
    positions=st.lists(st.integers(0, 100_000), min_size=1, max_size=5),
)
def test_tables_lie_on_a_circle(theta, pairs, scaling, factor, original, positions):
    rope = RopeConfig(
        theta=theta,
        rotary_dim=2 * pairs,
        scaling=scaling,
        factor=factor,
        original_max_position_embeddings=original,
    )
    cos, sin = cos_sin(rope, 64, np.array(positions))
    assert cos.shape == sin.shape == (len(positions), pairs)
    assert cos.dtype == sin.dtype == np.float32
    radius = attention_factor(rope, 64)
    np.testing.assert_allclose(np.hypot(cos, sin), radius, rtol=1e-6)


def test_unknown_scaling_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="'dynamic'"):
        inv_freq(RopeConfig(rotary_dim=2, scaling="dynamic"), 1)
    config = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(UnsupportedError, match="rope_type is 'dynamic'"):
        rope_from_hf(Keys(config, "config.json"), 8, 64)
    metadata = {"a.rope.scaling.type": "dynamic"}
    with pytest.raises(UnsupportedError, match=r"a\.rope\.scaling\.type is 'dynamic'"):
        rope_from_gguf(Keys(metadata, "GGUF metadata", "a."), 8, 64)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": [2]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4}}, "high_freq"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 2]}}, "short_factor"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor"),
    ],
)
def test_bad_values_are_named(config, key):
    with pytest.raises(FormatError, match=key):
        rope_from_hf(Keys(config, "config.json"), 8, 64, partial=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "alpha": 3}}, "alpha is 3"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1]}}, "mrope_section is"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "attn_factor": 2}}, "attn_factor is 2"),
        ({"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta is 0.1"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention is"),
        ({"rope_scaling": {"type": "su", "long_mscale": 1.2}}, "long_mscale is 1.2"),
    ],
)
def test_keys_that_nobody_reads_are_refused(config, message):
    with pytest.raises(UnsupportedError, match=message):
        rope_from_hf(Keys(config, "config.json"), 8, 64)


def test_yarn_may_reach_further_than_the_config_states():
    def read(**section):
        config = {**case("qwen2").config, "max_position_embeddings": 64, "rope_scaling": section}
        return family_of_hf(config).config_from_hf(config).max_position_embeddings

    yarn = {"type": "yarn", "factor": 4.0}
    assert read(**yarn, original_max_position_embeddings=64) == 256
    assert read(**yarn, original_max_position_embeddings=8) == 64
    assert read(type="linear", factor=4.0) == 64
    assert read(type="yarn", factor=1e11) == MAX_SIZE
    assert max_positions(read_gguf(**{"scaling.type": "yarn", "scaling.factor": 2.5}), 64) == 160


def test_keys_of_another_scaling_change_nothing():
    """As in transformers, which writes a warning."""
    own = {"type": "linear", "factor": 2.0}
    more = {**own, "beta_fast": 3.0, "attention_factor": 9.0, "finetuned": True, "truncate": None}
    assert rope_from_hf(Keys({"rope_scaling": more}, "c"), 8, 64) == rope_from_hf(
        Keys({"rope_scaling": own}, "c"), 8, 64
    )


def test_the_older_section_goes_first():
    both = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0},
    }
    assert rope_from_hf(Keys(both, "c"), 8, 64).factor == 2.0
    assert rope_from_hf(Keys({**both, "rope_scaling": {}}, "c"), 8, 64).factor == 3.0


def read_gguf(**values):
    return rope_from_gguf(
        Keys({f"a.rope.{key}": value for key, value in values.items()}, "GGUF metadata", "a."),
        8,
        64,
    )


def test_attention_factors_of_gguf_files():
    yarn = {"scaling.type": "yarn", "scaling.factor": 16.0}
    own = 0.1 * np.log(16.0) + 1.0
    assert attention_factor(read_gguf(**yarn), 1) == pytest.approx(own)
    for more, wanted in (
        ({"scaling.yarn_log_multiplier": 1.0}, 1.0),
        ({"scaling.yarn_log_multiplier": 0.5}, own / (0.05 * np.log(16.0) + 1.0)),
        ({"scaling.attn_factor": 0.5}, own * 0.5),
        ({"scaling.yarn_attn_factor": 1.25}, 1.25),
        ({"scaling.yarn_attn_factor": 1.25, "scaling.attn_factor": 2.0}, 2.5),
        ({"scaling.finetuned": True}, own),
    ):
        assert attention_factor(read_gguf(**yarn, **more), 1) == pytest.approx(wanted)
    for kind in ("none", "linear"):
        rope = read_gguf(**{"scaling.type": kind, "scaling.attn_factor": 1.5})
        assert attention_factor(rope, 1) == 1.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scaling.alpha": 2.0}, "alpha is 2.0"),
        ({"scaling.type": "yarn", "scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5"),
    ],
)
def test_gguf_keys_that_nobody_reads_are_refused(values, message):
    with pytest.raises(UnsupportedError, match=message):
        read_gguf(**values)


def test_any_family_may_have_longrope_in_gguf():
    rope = read_gguf(**{"scaling.type": "longrope", "scaling.original_context_length": 16})
    assert (rope.scaling, rope.original_max_position_embeddings, rope.factor) == ("longrope", 16, 4)
    assert short_context([rope, RopeConfig()]) == 16
    assert short_context([RopeConfig()]) == 0
    with pytest.raises(UnsupportedError, match="16 and 32 tokens"):
        short_context([rope, replace(rope, original_max_position_embeddings=32)])


def test_odd_rotations_are_refused():
    with pytest.raises(UnsupportedError, match="5 of 10"):
        rope_from_hf(Keys({"partial_rotary_factor": 0.5}, "config.json"), 10, 64, partial=True)


def test_old_name_of_longrope():
    scaling = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = {"original_max_position_embeddings": 32, "rope_scaling": scaling}
    assert rope_from_hf(Keys(config, "config.json"), 8, 64).scaling == "longrope"


def test_gguf_zero_factor_means_none():
    metadata = {"a.rope.scaling.factor": 0.0, "a.rope.freq_base": 5000.0}
    rope = rope_from_gguf(Keys(metadata, "GGUF metadata", "a."), 8, 64)
    assert rope == RopeConfig(theta=5000.0, rotary_dim=8)
    scaled = rope_from_gguf(Keys({"a.rope.scale_linear": 4.0}, "GGUF metadata", "a."), 8, 64)
    assert scaled == replace(rope, theta=10000.0, scaling="linear", factor=4.0)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "rope.scaling.type",
                "rope.scaling.factor",
                "rope.freq_base",
                "rope.dimension_count",
                "rope.scaling.original_context_length",
                "rope.scaling.yarn_beta_fast",
                "rope.scaling.yarn_attn_factor",
                "rope.scaling.yarn_log_multiplier",
                "rope.scaling.attn_factor",
            ]
        ),
        st.one_of(
            st.sampled_from(["none", "linear", "yarn"]), st.floats(), st.integers(), st.booleans()
        ),
    )
)
def test_hostile_metadata_gives_our_error_or_finite_tables(metadata):
    try:
        rope = rope_from_gguf(Keys(metadata, "GGUF metadata"), 8, 64)
    except FastLLMError:
        return
    cos, sin = cos_sin(rope, 64, np.arange(64))
    assert np.isfinite(cos).all()
    assert np.isfinite(sin).all()


@given(
    st.dictionaries(
        st.sampled_from(sorted(HF_KEYS - {"rope_type"})),
        st.one_of(
            st.floats(), st.integers(), st.booleans(), st.none(),
            st.lists(st.floats(0.1, 100), min_size=4, max_size=4),
        ),
    ),
    st.sampled_from(sorted(HF_SCALINGS)),
    st.integers(2, 1 << 20),
)  # fmt: skip
def test_hostile_rope_sections_give_our_error_or_finite_tables(section, kind, positions):
    config = {"rope_parameters": {**section, "rope_type": kind}}
    try:
        rope = rope_from_hf(Keys(config, "config.json"), 8, positions, partial=True)
    except FastLLMError:
        return
    for num_tokens in (1, 1 << 24):
        cos, sin = cos_sin(rope, num_tokens, np.arange(0, positions, 1 + positions // 50))
        assert np.isfinite(cos).all()
        assert np.isfinite(sin).all()
    assert positions <= max_positions(rope, positions) <= MAX_SIZE
