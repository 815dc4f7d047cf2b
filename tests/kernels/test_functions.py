"""exp, tanh, the activations and half precision on 16 lanes, against NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.probe import FUNCTIONS
from tests.naive.forward import ACTIVATIONS

REFERENCES = {
    "exp": np.exp,
    "exp2": np.exp2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    **ACTIVATIONS,
}
# (from, to): where the function is promised to follow its reference
RANGES = {
    "exp": (-87, 88),
    "exp2": (-126, 126),
    "sigmoid": (-87, 88),
}
RELATIVE = {"exp": 3e-7, "exp2": 3e-7, "sigmoid": 4e-7}
# of the others: error divided by max(1, |x|); the polynomials of tanh and erf are absolute
ABSOLUTE = {"tanh": 2.5e-7, "silu": 2.5e-7, "gelu_tanh": 2.5e-7, "gelu": 2.5e-7, "relu": 0.0}
EXTREMES = np.float32(
    [sign * size for size in (0.0, 1e-45, 1e-38, 1e-20, 1e4, 1e30, 3.4e38) for sign in (1, -1)]
)


def samples(low, high):
    """Values of all sizes within a range, both ends and halves (where rounding turns) included."""
    even = np.linspace(low, high, 20_001)
    small = np.geomspace(1e-30, 1, 2_000)
    halves = np.arange(math.ceil(low), math.floor(high)) + 0.5
    values = np.concatenate([even, small, -small, halves, np.nextafter(halves, 0)])
    return values[(values >= low) & (values <= high)].astype(np.float32)


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_error(kernels, name):
    x = samples(*RANGES[name])
    expected = REFERENCES[name](x.astype(np.float64))
    error = np.abs(kernels.function(name, x) / expected - 1)
    assert error.max() <= RELATIVE[name]


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_error(kernels, name):
    x = np.concatenate([samples(-12, 12), samples(-80, 80)])
    expected = REFERENCES[name](x.astype(np.float64))
    error = np.abs(kernels.function(name, x) - expected) / np.maximum(1, np.abs(x))
    assert error.max() <= ABSOLUTE[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays(kernels, name):
    x = np.zeros(16, np.float32)
    x[5] = np.nan
    assert np.isnan(kernels.function(name, x)).tolist() == [lane == 5 for lane in range(16)]


@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_outside_the_range_is_the_nearest_end(kernels, name):
    low, high = RANGES[name]
    x = np.float32([-np.inf, -1e30, low - 1, low, high, high + 1, 1e30, np.inf])
    y = kernels.function(name, x)
    assert (y[:4] == y[3]).all()
    assert (y[4:] == y[4]).all()
    assert 0 < y[3] < 2e-38
    assert 8e37 < y[4] < np.inf


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "relu"])
def test_extremes(kernels, name):
    """No overflow on the way makes NaN or infinity of a finite value."""
    y = kernels.function(name, EXTREMES).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = REFERENCES[name](EXTREMES.astype(np.float64))
    assert np.isfinite(y).all()
    assert (np.abs(y - expected) <= 1e-6 * np.maximum(1, np.abs(EXTREMES.astype(np.float64)))).all()


def test_exp2_of_whole_numbers_is_exact(kernels):
    """The softmax rescales by exp2(0) = 1 exactly, or a page that changes nothing would."""
    whole = np.arange(-126, 127).astype(np.float32)
    np.testing.assert_array_equal(kernels.function("exp2", whole), np.exp2(whole))


def test_every_half_is_read_exactly(kernels):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    found, expected = kernels.half_to_float(halves), halves.astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    assert (np.signbit(found) == np.signbit(expected)).all()


def check_to_half(kernels, x):
    """As NumPy, but saturated: infinity in the KV cache would spoil other tokens (0 * inf)."""
    found = kernels.float_to_half(x)
    expected = np.clip(x, -65504, 65504).astype(np.float16)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint16), expected[~nan].view(np.uint16))


def test_halves_and_what_lies_between_are_written_as_numpy_does(kernels):
    """Every half, the points halfway to its neighbour (ties to even) and both sides of them."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middle = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
    last = np.float32([65519.996, 65520, 65520.004, 1e5, 3.4e38, np.inf, np.nan])
    small = np.float32([2.0**-25, 2.0**-26, 1e-40, 1e-45])
    x = np.concatenate(
        [halves.astype(np.float32), middle, np.nextafter(middle, np.float32(0)),
         np.nextafter(middle, np.float32(1e9)), last, small]
    )  # fmt: skip
    check_to_half(kernels, np.concatenate([x, -x]))


@given(st.integers(0, 2**32 - 1))
def test_any_float_is_written_as_numpy_does(kernels, seed):
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 4096, np.uint32)
    with np.errstate(invalid="ignore"):
        check_to_half(kernels, bits.view(np.float32))
