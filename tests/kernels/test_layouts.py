"""Panels: the packing kernel against its NumPy twin, and the twin against a plain description."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.kernels.layouts import LAYOUTS, native_unit_columns
from fastllm.kernels.moves import move_table
from fastllm.kernels.panels import COPY, FLIP_SIGNS, SPREAD_BITS
from fastllm.quants import BLOCKS, row_bytes
from tests.kernels.samples import POSSIBLE_ROADS, pack_rows
from tests.naive.panels import pack_reference, spread_bits

# Bytes a row's unit is larger than in the file: a lone scale of 16 rows is padded to 64 bytes.
PADDED = {"q3_k": 2, "q6_k": 2}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_unit_holds_every_byte_of_its_rows(name):
    layout, block = LAYOUTS[name], BLOCKS[name]
    assert layout.block_bytes == layout.unit // block.elements * block.bytes
    moved = sorted(
        [at + i for at in layout.halves if at >= 0 for i in range(2)]
        + [at + i for at, _ in layout.dwords for i in range(4)]
    )
    assert moved == list(range(layout.block_bytes))  # each once
    assert layout.unit_bytes % 32 == 0
    assert layout.unit_bytes == 16 * (layout.block_bytes + PADDED.get(name, 0))


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    blocks=st.integers(1, 9),
    rows=st.integers(1, 50),
)
def test_sizes(name, blocks, rows):
    layout = LAYOUTS[name]
    columns = blocks * native_unit_columns(name)
    assert 0 <= layout.units(columns) * layout.unit - columns < layout.unit
    panels = (rows + 15) // 16
    assert layout.panel_bytes(columns) == layout.units(columns) * layout.unit_bytes
    assert layout.matrix_bytes(rows, columns) == panels * layout.panel_bytes(columns)


def test_spread_bits_is_a_permutation_that_gathers_each_piece():
    single = np.uint32(1) << np.arange(32, dtype=np.uint32)
    moved = spread_bits(single)
    assert sorted(moved.tolist()) == sorted(single.tolist())
    # codes 4g..4g+3 and 16+4g..16+4g+3 are multiplied with shifts g and 4+g and one mask
    for code, bit in enumerate(moved.tolist()):
        piece = code % 16 // 4 + (4 if code >= 16 else 0)
        assert (bit >> piece) & 0x01010101
    everything = np.arange(1 << 12, dtype=np.uint32) * np.uint32(1048573)
    joined = spread_bits(everything & np.uint32(0xFFFF)) | spread_bits(
        everything & np.uint32(0xFFFF0000)
    )
    np.testing.assert_array_equal(joined, spread_bits(everything))


@pytest.mark.parametrize("name", LAYOUTS)
def test_move_table(name):
    layout, table = LAYOUTS[name], move_table(name)
    halves, dwords = table[:2]
    assert (halves, dwords) == (len(layout.halves), len(layout.dwords))
    assert tuple(table[2 : 2 + halves]) == layout.halves
    assert [tuple(pair) for pair in table[2 + halves :].reshape(-1, 2)] == list(layout.dwords)
    assert {move for _, move in layout.dwords} <= {COPY, FLIP_SIGNS, SPREAD_BITS}


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 5), rows=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_packing_kernel_is_its_numpy_twin(name, blocks, rows, seed):
    columns = blocks * native_unit_columns(name)
    native = np.random.default_rng(seed).integers(
        0, 256, (rows, row_bytes(name, columns)), np.uint8
    )
    expected = pack_reference(name, native)
    for road in POSSIBLE_ROADS:
        np.testing.assert_array_equal(pack_rows(name, native, columns, road), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_lane_is_a_row(name):
    """Changing one row changes bytes of its own lane only, and only in its own panel."""
    columns = 2 * LAYOUTS[name].unit
    native = np.random.default_rng(1).integers(0, 256, (20, row_bytes(name, columns)), np.uint8)
    before = pack_reference(name, native)
    native[18] ^= 0xFF
    changed = pack_reference(name, native) != before
    assert not changed[0].any()
    layout = LAYOUTS[name]
    units = changed[1].reshape(layout.units(columns), layout.unit_bytes)
    split = 32 * len(layout.halves)
    halves = units[:, :split].reshape(-1, 16, 2)
    dwords = units[:, split:].reshape(-1, 16, 4)
    assert not np.delete(halves, 2, axis=1).any()
    assert not np.delete(dwords, 2, axis=1).any()
    assert changed.sum() == row_bytes(name, columns)
