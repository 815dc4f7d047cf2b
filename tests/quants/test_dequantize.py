"""Every type against the gguf package, bit by bit, on arbitrary bytes."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import FormatError, UnsupportedError
from fastllm.quants import BLOCKS, dequantize

# gguf has no dequantize for these; NumPy's own casts are the reference.
PLAIN = ("f64", "i8", "i16", "i32", "i64")
TYPES = [name for name in BLOCKS if name not in PLAIN]


def make_blocks(name, seed, num_blocks, finite):
    """Random blocks; with `finite`, every float16 in them is."""
    block = BLOCKS[name]
    raw = np.random.default_rng(seed).integers(0, 256, (num_blocks, block.bytes), np.uint8)
    record = raw.view(block.record)[:, 0]
    if finite:
        for field in block.record.names:
            if block.record[field] == np.dtype("<f2"):
                bits = record[field].view(np.uint16)
                record[field] = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).view("<f2")
    return raw


def reference(name, raw):
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), columns=st.integers(1, 4))
def test_equal_to_gguf_bit_by_bit(name, seed, rows, columns):
    raw = make_blocks(name, seed, rows * columns, finite=True).reshape(rows, -1)
    got, want = dequantize(name, raw), reference(name, raw)
    assert got.dtype == np.float32
    assert got.shape == want.shape == (rows, columns * BLOCKS[name].elements)
    # A bf16 or f32 NaN is compared as a NaN: its payload may depend on the conversion.
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", TYPES)
def test_scales_that_are_not_finite_make_no_warning(name):
    raw = make_blocks(name, 1, 2000, finite=False)
    np.testing.assert_array_equal(dequantize(name, raw), reference(name, raw))
    everything = np.full((1, 2, BLOCKS[name].bytes), 0xFF, np.uint8)
    assert dequantize(name, everything).shape == (1, 2, BLOCKS[name].elements)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers(name):
    stored = np.dtype({"f": "float", "i": "int"}[name[0]] + name[1:])
    values = np.array([[0, 1, -1, 127], [-128, 5, 6, 7]], stored)
    got = dequantize(name, values.view(np.uint8))
    np.testing.assert_array_equal(got, values.astype(np.float32))


@pytest.mark.parametrize("name", ["q4_1", "q6_k", "f16"])
def test_shapes_strides_and_slices(name):
    # More than one internal slice, a strided view, no rows, no leading axes.
    raw = make_blocks(name, 2, 3 * 70_000 // BLOCKS[name].elements, finite=True)
    whole = dequantize(name, raw)
    np.testing.assert_array_equal(dequantize(name, raw[::2]), whole[::2])
    np.testing.assert_array_equal(dequantize(name, raw[7]), whole[7])
    np.testing.assert_array_equal(dequantize(name, raw.reshape(-1)), whole.reshape(-1))
    assert dequantize(name, raw[:0]).shape == (0, BLOCKS[name].elements)
    assert dequantize(name, np.zeros((2, 0), np.uint8)).shape == (2, 0)


def test_refusals():
    with pytest.raises(FormatError, match="multiple of 18"):
        dequantize("q4_0", np.zeros(17, np.uint8))
    with pytest.raises(FormatError, match="uint8"):
        dequantize("q4_0", np.zeros(18, np.int8))
    with pytest.raises(UnsupportedError, match="iq1_s"):
        dequantize("iq1_s", np.zeros(18, np.uint8))


def test_frozen_bytes():
    # Written by hand from the format's description, independent of any library.
    q4_0 = np.array([0x00, 0x3C] + [0x8F] + [0x70] * 15, np.uint8)  # d = 1
    values = dequantize("q4_0", q4_0)
    assert values[0] == 7
    assert values[16] == 0
    assert (values[1:16] == -8).all()
    assert (values[17:] == -1).all()
    q8_0 = np.array([0x00, 0xC0] + [0x80, 0x7F] + [0] * 30, np.uint8)  # d = -2
    assert dequantize("q8_0", q8_0)[:3].tolist() == [256, -254, 0]
