import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.config import RopeConfig
from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from fastllm.models.keys import Keys
from fastllm.models.rope import attention_factor, cos_sin, inv_freq
from fastllm.models.rope_keys import rope_from_gguf, rope_from_hf

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
# transformers computes frequencies in float32.
RELATIVE_ERROR = 5e-7


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_frequencies_are_those_of_transformers(golden):
    config = golden["config"]
    rope = rope_from_hf(Keys(config, "config.json"), 16, config["max_position_embeddings"])
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
        rope_from_hf(Keys(config, "config.json"), 8, 64)


def test_odd_rotations_are_refused():
    with pytest.raises(UnsupportedError, match="5 of 10"):
        rope_from_hf(Keys({"partial_rotary_factor": 0.5}, "config.json"), 10, 64)


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
