"""Float to blocks: equal to the gguf package, bounded error, and no harm by odd numbers."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastllm.errors import FormatError, UnsupportedError
from fastllm.quants import BLOCKS, QUANTIZABLE, dequantize, quantize

# Largest error, in shares of a block's largest magnitude (affine types: of its range), for a scale
# rounded to float16 (2^-11). Half a step, except that the positive end of a symmetric type is a
# whole step away from its last code.
MAX_ERROR = {
    "q8_0": 0.5 / 127 + 2**-11,
    "q4_0": 1 / 8 + 2**-11,
    "q5_0": 1 / 16 + 2**-11,
    "q4_1": 0.5 / 15 + 2**-10,
    "q5_1": 0.5 / 31 + 2**-10,
}


def gguf_quantize(name, x):
    with np.errstate(all="ignore"):
        packed = gguf.quantize(x, gguf.GGMLQuantizationType[name.upper()])
    return np.ascontiguousarray(packed).view(np.uint8)


@pytest.mark.parametrize("name", [name for name in QUANTIZABLE if not name.endswith("_k")])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    scale=st.floats(1e-3, 1e3),
    grid=st.booleans(),
)
def test_equal_to_gguf_bit_by_bit(name, seed, rows, columns, scale, grid):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 32 * columns), np.float32) * np.float32(scale)
    if grid:  # ties between codes, zero blocks, equal magnitudes of both signs
        x = np.round(x / np.float32(scale)) * (np.abs(x[:, :1]) > 0.5 * scale)
    np.testing.assert_array_equal(quantize(name, x), gguf_quantize(name, x.astype(np.float32)))


@pytest.mark.parametrize("name", MAX_ERROR)
@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32)))
def test_error_is_bounded(name, x):
    back = dequantize(name, quantize(name, x)).reshape(-1, 32)
    x = x.reshape(-1, 32)
    # Scales below float16's normal range (6e-5) lose bits of their own; 2^-25 each, times a code.
    floor = 2**-25 * 160
    size = np.abs(x).max(axis=1) if name in ("q8_0", "q4_0", "q5_0") else np.ptp(x, axis=1)
    bound = MAX_ERROR[name] * size + 2**-11 * np.abs(x).max(axis=1) + floor
    assert (np.abs(back - x).max(axis=1) <= bound).all()


@pytest.mark.parametrize("name", QUANTIZABLE)
@settings(max_examples=60, deadline=None)
@given(few=arrays(np.float32, 64, elements=st.floats(width=32)))
def test_any_float_at_all(name, few):
    size = max(32, BLOCKS[name].elements)
    x = np.zeros((2, size), np.float32)
    x[:, :32] = few.reshape(2, 32)
    back = dequantize(name, quantize(name, x))
    # A block with a NaN or infinity never comes back as if it were sound.
    broken = ~np.isfinite(x).all(axis=1)
    assert not (np.isfinite(back[broken]).all(axis=1)).any()


def test_halves_round_away_from_zero_in_q8_0():
    x = np.zeros(32, np.float32)
    x[:6] = [127, 0.5, -0.5, 1.5, 0.49999997, -2.5]
    assert quantize("q8_0", x)[2:8].view(np.int8).tolist() == [127, 1, -1, 2, 0, -3]


def test_bf16_rounds_to_even_and_keeps_nan():
    bits = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32)
    got = quantize("bf16", bits.view(np.float32)).view(np.uint16)
    assert [hex(v) for v in got] == ["0x3f80", "0x3f82", "0x7f80", "0x7fc0", "0xffff"]


def test_shapes_and_refusals():
    x = np.random.default_rng(3).standard_normal((2, 3, 96), np.float32)
    raw = quantize("q5_1", x)
    assert raw.shape == (2, 3, 3 * BLOCKS["q5_1"].bytes)
    np.testing.assert_array_equal(quantize("q5_1", x[:, ::2]), raw[:, ::2])
    assert quantize("q5_1", x[:0]).shape == (0, 3, 72)
    with pytest.raises(FormatError, match="32 elements"):
        quantize("q8_0", x[..., :33])
    with pytest.raises(FormatError, match="float64"):
        quantize("q8_0", x.astype(np.float64))
    with pytest.raises(UnsupportedError, match="'q2_k'"):
        quantize("q2_k", x)
