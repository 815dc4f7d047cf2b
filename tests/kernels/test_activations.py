"""Activations: tiles, sizes, and the quantizer against its NumPy twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.kernels.activations import (
    GROUP,
    KINDS,
    padded_columns,
    token_bytes,
)
from fastllm.kernels.road import ROADS
from fastllm.kernels.tiles import tile_size, tiles
from tests.naive.activations import layout_reference, quantize_reference

LARGEST = sorted({road.largest_tile for road in ROADS} | {1, 4})
# The smallest step of a row that `kernels.activations` allows.
STEP = {"q32": 32, "q256": 256, "f32": 1}


@given(num_tokens=st.integers(0, 700), largest=st.sampled_from(LARGEST))
def test_every_token_is_in_the_largest_tile_that_fits(num_tokens, largest):
    """The rule against its plain form: while tokens are left, the largest tile that they fill."""
    expected, start = [], 0
    while start < num_tokens:
        size = largest
        while size > num_tokens - start:
            size //= 2
        expected.append((start, size))
        start += size
    assert tiles(num_tokens, largest) == expected
    for first, size in expected:
        for token in range(first, first + size):
            assert tile_size(num_tokens, token, largest) == size
            assert token & -size == first


@given(kind=st.sampled_from(sorted(KINDS)), steps=st.integers(1, 9), num_tokens=st.integers(1, 20))
def test_token_bytes(kind, steps, num_tokens):
    columns = steps * STEP[kind]
    whole = padded_columns(kind, columns)
    assert whole >= columns
    assert whole % GROUP[kind] == 0
    x = np.ones((num_tokens, columns), np.float32)
    for largest in LARGEST:
        laid_out = layout_reference(kind, x, largest)
        assert len(laid_out) == num_tokens * token_bytes(kind, columns)


@given(seed=st.integers(0, 2**32 - 1), group=st.sampled_from([32, 256]))
def test_codes_are_the_nearest(seed, group):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, 2 * group)) * np.exp(4 * rng.standard_normal())).astype(np.float32)
    codes, scales = quantize_reference(x, group)
    back = codes.reshape(3, 2, group) * scales[..., None].astype(np.float64)
    error = np.abs(back - x.reshape(3, 2, group))
    assert (error <= scales[..., None] * 0.5001).all()
    assert (np.abs(codes).reshape(3, 2, group).max(-1) == 127).all()


@pytest.mark.parametrize("kind", KINDS)
@given(
    num_tokens=st.integers(1, 20),
    steps=st.integers(1, 20),
    pieces=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantizer_is_its_numpy_twin(kernels, kind, num_tokens, steps, pieces, seed):
    rng = np.random.default_rng(seed)
    columns = steps * STEP[kind] if kind != "q256" else (steps + 3) // 4 * 256
    x = rng.standard_normal((num_tokens, columns)) * np.exp(8 * rng.standard_normal(columns))
    x = x.astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    expected = layout_reference(kind, x, kernels.road.largest_tile)
    np.testing.assert_array_equal(kernels.quantize(kind, x, pieces), expected)


@pytest.mark.parametrize("kind", ["q32", "q256"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_own_group_and_token(kernels, kind, value):
    group = GROUP[kind]
    x = np.random.default_rng(3).standard_normal((3, 4 * group)).astype(np.float32)
    x[1, group + 7] = value
    largest = kernels.road.largest_tile
    found = kernels.quantize(kind, x).reshape(3, -1)
    sound = layout_reference(kind, np.where(np.isfinite(x), x, 0).astype(np.float32), largest)
    start, size = next(tile for tile in tiles(3, largest) if sum(tile) > 1)
    tile = found.reshape(-1)[start * found.shape[1] : (start + size) * found.shape[1]]
    groups = tile.reshape(4, -1)
    scales = groups[:, : 4 * size].copy().view(np.float32)
    assert not np.isfinite(scales[1, 1 - start])
    scales[1, 1 - start] = 0
    assert np.isfinite(scales).all()
    if start:  # other tiles are untouched
        before = start * found.shape[1]
        np.testing.assert_array_equal(found.reshape(-1)[:before], sound[:before])


@pytest.mark.parametrize("kind", ["q32", "q256"])
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, 1e-38, 2.0**-101])
def test_rows_too_small_to_scale_are_zero(kernels, kind, tiny):
    """127 / max|x| would overflow; codes must be 0 and nothing infinite."""
    x = np.full((1, 256), tiny, np.float32)
    found = kernels.quantize(kind, x)
    zeros = layout_reference(kind, np.zeros_like(x), kernels.road.largest_tile)
    group = {"q32": 44, "q256": 340}[kind]
    scales = found.reshape(-1, group)[:, :4].copy().view(np.float32)
    assert (np.abs(scales) <= 2.0**-100).all()
    np.testing.assert_array_equal(found.reshape(-1, group)[:, 4:], zeros.reshape(-1, group)[:, 4:])
