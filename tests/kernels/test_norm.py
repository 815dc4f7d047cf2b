"""RMS norm and layer norm of a row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.kernels.words import NORMS

RMS, LAYER = NORMS["rms"], NORMS["layer"]

# In units of the largest |weight| + |bias|; a row of 4096 sums in 16 lanes.
TOLERANCE = 2e-6


def reference(kind, x, weight, bias, eps):
    x = x.astype(np.float64)
    if kind == LAYER:
        x = x - x.mean()
    y = x / np.sqrt((x * x).mean() + eps) * weight
    return y if bias is None else y + bias


@given(
    kind=st.sampled_from([RMS, LAYER]),
    columns=st.integers(1, 600),
    has_bias=st.booleans(),
    in_place=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 1e-12]),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_float64(kernels, kind, columns, has_bias, in_place, eps, offset, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(columns) * np.exp(3 * rng.standard_normal()) + offset).astype("f4")
    weight = rng.standard_normal(columns).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32) if has_bias else None
    out = kernels.norm(kind, x, weight, bias, eps, in_place)
    expected = reference(kind, x, weight, bias, eps)
    # a layer norm of almost equal values magnifies the rounding of their mean
    deviation = np.sqrt(((x - x.mean(dtype=float)) ** 2).mean() + eps) if kind == LAYER else 1
    allowed = TOLERANCE * (1 + np.abs(weight).max() * (1 + np.abs(x).max() / deviation))
    assert np.abs(out[:columns] - expected).max() <= allowed
    assert (out[columns:] == 0).all()


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_constant_rows(kernels, kind):
    ones = np.ones(100, np.float32)
    zeros = kernels.norm(kind, np.zeros(100, np.float32), ones, None, 1e-5)
    assert (zeros == 0).all()
    flat = kernels.norm(kind, np.full(100, 7, np.float32), ones, None, 1e-5)[:100]
    assert np.abs(flat - (0 if kind == LAYER else 1)).max() < 1e-5


@pytest.mark.parametrize("kind", [RMS, LAYER])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(kernels, kind, value):
    x = np.ones(40, np.float32)
    x[33] = value
    out = kernels.norm(kind, x, np.ones(40, np.float32), None, 1e-5)
    assert np.isnan(out[33])


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_memory_behind_a_row_is_not_summed(kernels, kind):
    """Rows are padded to 16; what lies there must not count, whatever it is."""
    x, weight = np.arange(1, 22, dtype=np.float32), np.ones(21, np.float32)
    padded = np.concatenate([x, np.full(11, 1e9, np.float32)])
    longer = np.concatenate([weight, np.zeros(11, np.float32)])
    clean = kernels.norm(kind, x, weight, None, 1e-5)
    dirty = kernels.norm(kind, padded, longer, None, 1e-5)
    assert not np.array_equal(clean[:21], dirty[:21])  # 32 columns: now it counts
    out = kernels.norm_of(kind, padded, longer, 21, 1e-5)
    np.testing.assert_array_equal(out[:21], clean[:21])
