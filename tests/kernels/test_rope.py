"""Rotation of a head, against the oracle's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.kernels.words import ROPE_STYLES as STYLES
from tests.naive.forward import rotate

NO_STYLE = 0


def table(cos, sin, style):
    """Angles spread over both partners, sines with their sign: float32[2, rotary_dim]."""
    out = np.empty((2, 2 * len(cos)), np.float32)
    first = slice(None, len(cos)) if style == "half" else slice(0, None, 2)
    second = slice(len(cos), None) if style == "half" else slice(1, None, 2)
    out[0, first], out[0, second] = cos, cos
    out[1, first], out[1, second] = -sin, sin
    return out


@given(
    style=st.sampled_from(sorted(STYLES)),
    pairs=st.integers(1, 70),
    unrotated=st.integers(0, 40),
    scale=st.sampled_from([1.0, 0.125, 1.4426950408889634 * 0.0883]),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_the_oracle(kernels, style, pairs, unrotated, scale, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(2 * pairs + unrotated).astype(np.float32)
    angles = rng.uniform(-7, 7, pairs)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    out = kernels.rotate(STYLES[style], x, table(cos, sin, style), scale)
    wide = x.astype(np.float64)[None, None]
    expected = rotate(wide, cos[None].astype(float), sin[None].astype(float), style)[0, 0] * scale
    assert np.abs(out[: len(x)] - expected).max() <= 4e-7 * np.abs(x).max() * max(1, scale)
    assert (out[len(x) :] == 0).all()


@pytest.mark.parametrize("head_dim", [12, 16, 20, 64, 80])
def test_no_rotation_scales_and_pads(kernels, head_dim):
    x = np.arange(head_dim, dtype=np.float32)
    out = kernels.rotate(NO_STYLE, x, np.zeros((2, 0), np.float32), 0.5)
    np.testing.assert_array_equal(out[:head_dim], x / 2)
    assert (out[head_dim:] == 0).all()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("rotary_dim", [16, 24, 32, 64])
def test_position_zero_changes_nothing(kernels, style, rotary_dim):
    """cos 1, sin 0: exactly the input, on the vector and the scalar way."""
    x = np.random.default_rng(0).standard_normal(rotary_dim).astype(np.float32)
    ones, zeros = np.ones(rotary_dim // 2, np.float32), np.zeros(rotary_dim // 2, np.float32)
    out = kernels.rotate(STYLES[style], x, table(ones, zeros, style), 1.0)
    np.testing.assert_array_equal(out[:rotary_dim], x)
