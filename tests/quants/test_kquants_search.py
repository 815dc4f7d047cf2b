"""The K-quants that we write: read as ggml reads them, with bounded errors, whatever comes."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.quants import dequantize, quantize

# Root mean square error over that of the weights, for normal and for Laplace weights: what ggml's
# reference quantizer reaches on the same kind of data, and 0.4 % more.
QUALITY = {
    "q4_k": {"normal": 0.0714, "laplace": 0.0846},
    "q5_k": {"normal": 0.0361, "laplace": 0.0428},
    "q6_k": {"normal": 0.0178, "laplace": 0.0216},
}
# Largest error in shares of the super-block's largest magnitude. A code is half a step off; scale
# and minimum are multiples of 1/63 (1/128) of the super-block's largest, and the search may let a
# single weight go for the sake of the others.
MAX_ERROR = {"q4_k": 0.20, "q5_k": 0.12, "q6_k": 0.08}


def blocks(seed, kind, scale, rows=6):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 256), np.float32)
    if kind == "one sign":
        x = np.abs(x) + np.float32(1)
    elif kind == "constant":
        x[:] = x[:, :1]
    elif kind == "sparse":
        x[rng.random(x.shape) < 0.95] = 0
    elif kind == "grid":
        x = np.round(x * 3)
    return x * np.float32(scale)


KINDS = ("normal", "one sign", "constant", "sparse", "grid")


@pytest.mark.parametrize("name", MAX_ERROR)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), scale=st.floats(1e-2, 1e3))
def test_error_is_bounded(name, seed, kind, scale):
    x = blocks(seed, kind, scale)
    raw = quantize(name, x)
    back = dequantize(name, raw)
    np.testing.assert_array_equal(
        back, gguf.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
    )
    assert (np.abs(back - x).max(axis=1) <= MAX_ERROR[name] * np.abs(x).max(axis=1)).all()


@pytest.mark.parametrize("name", QUALITY)
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_as_good_as_the_reference(name, kind):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 256)) if kind == "normal" else rng.laplace(size=(4000, 256))
    x = (x * 0.02).astype(np.float32)
    error = np.sqrt(np.mean((dequantize(name, quantize(name, x)) - x) ** 2) / np.mean(x**2))
    assert error <= 1.004 * QUALITY[name][kind]


@pytest.mark.parametrize("name", MAX_ERROR)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), power=st.integers(-1, 3))
def test_a_power_of_two_changes_nothing_but_the_scale(name, seed, kind, power):
    x = blocks(seed, kind, 2**10)  # all scales are normal numbers of float16
    one, other = (dequantize(name, quantize(name, x * np.float32(f))) for f in (1, 2.0**power))
    np.testing.assert_array_equal(one * np.float32(2.0**power), other)


@pytest.mark.parametrize("name", MAX_ERROR)
def test_extreme_blocks(name):
    x = np.zeros((5, 256), np.float32)
    x[1] = 1e-41  # subnormal: below what a float16 scale can say
    x[2, 7] = 60000
    x[3] = -3.0
    x[4] = np.linspace(-1, 1, 256)
    back = dequantize(name, quantize(name, x))
    assert (back[:2] == 0).all()
    assert back[2, 7] == pytest.approx(60000, rel=0.01)
    np.testing.assert_allclose(back[3], -3, rtol=0.01)
    assert np.abs(back[4] - x[4]).max() < 0.1


@pytest.mark.parametrize("name", MAX_ERROR)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_float16_scale_can_hold_is_not_hidden(name, value):
    x = np.ones((3, 256), np.float32)
    x[1, 100] = value
    back = dequantize(name, quantize(name, x))
    assert np.isfinite(back[[0, 2]]).all()
    assert not np.isfinite(back[1]).all()
