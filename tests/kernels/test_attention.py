"""Attention over pages, against the oracle: windows, caps, groups, scrambled blocks, chunks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.kernels.interpreter_codes import CHUNK_PAGES, STATE_BYTES
from fastllm.kernels.kv_page import PAGE
from tests.kernels.probe import CHUNK, FINISH, MERGE, bits
from tests.kernels.samples import aligned, aligned_copy
from tests.naive.attention import attend, to_pages

# In units of the largest |value|: exp2 and the sums of a few hundred weights.
TOLERANCE = 2e-6
CHUNK_POSITIONS = PAGE * CHUNK_PAGES


class Head:
    """Keys and values of one kv head in scattered blocks, NaN where nothing is stored."""

    def __init__(self, seed, num_positions, dim, wide):
        rng = np.random.default_rng(seed)
        dtype = np.float32 if wide else np.float16
        self.dim, self.wide = dim, wide
        self.keys = rng.standard_normal((num_positions, dim)).astype(dtype)
        self.values = rng.standard_normal((num_positions, dim)).astype(dtype)
        num_pages = -(-num_positions // PAGE)
        self.table = aligned_copy(rng.permutation(num_pages + 3)[:num_pages].astype(np.int32), 64)
        pages = to_pages(self.keys, self.values, self.table, num_pages + 3, dtype)
        # between blocks lie other heads
        self.pages = aligned((len(pages), 2 * pages[0].size), dtype)
        self.pages[:] = np.nan
        self.pages[:, : pages[0].size] = pages.reshape(len(pages), -1)
        self.rng = rng

    def queries(self, num_rows):
        """float32[num_rows, dim], as large as real ones: scores of a few units."""
        q = self.rng.standard_normal((num_rows, self.dim)) * 2 / math.sqrt(self.dim)
        return aligned_copy(q.astype(np.float32))


def run(kernels, head, q, group, position, window=0, cap=0.0, head_dim=None):
    """float32[rows, head_dim]: as the step does it, chunk by chunk, merged in order."""
    rows, dim = len(q), head.dim
    head_dim = head_dim or dim
    total, part = aligned((rows + 4, dim), np.float32), aligned((rows + 4, dim), np.float32)
    total_state, state = (aligned((rows + 4) * STATE_BYTES) for _ in range(2))
    scratch = aligned(1024 + 2 * PAGE * dim * 4 + 64)
    last_page = (position + (rows - 1) // group) // PAGE + 1
    for first in range(0, last_page, CHUNK_PAGES):
        o, s = (part, state) if first else (total, total_state)
        kernels.call(
            CHUNK, q.ctypes.data, rows, group, position, window, bits(cap), dim,
            head.pages.ctypes.data, head.pages.strides[0], head.wide, head.table.ctypes.data,
            first, min(last_page, first + CHUNK_PAGES), o.ctypes.data, s.ctypes.data,
            scratch.ctypes.data,
        )  # fmt: skip
        if first:
            kernels.call(
                MERGE, rows, dim, o.ctypes.data, s.ctypes.data, total.ctypes.data,
                total_state.ctypes.data,
            )  # fmt: skip
    out = aligned((rows, -(-head_dim // 16) * 16), np.float32)
    for row in range(rows):
        kernels.call(
            FINISH, dim, head_dim, total[row].ctypes.data,
            total_state.ctypes.data + STATE_BYTES * row, out[row].ctypes.data,
        )  # fmt: skip
    return out[:, :head_dim]


def check(kernels, head, q, group, position, window, cap):
    found = run(kernels, head, q, group, position, window, cap)
    expected = [
        attend(row, head.keys, head.values, position + r // group, window, cap)
        for r, row in enumerate(q)
    ]
    assert np.abs(found - expected).max() <= TOLERANCE * 4
    return found


@pytest.mark.parametrize("wide", [0, 1], ids=["f16", "f32"])
@settings(max_examples=50, deadline=None)
@given(
    dim=st.sampled_from([16, 32, 48, 64, 80, 96, 128, 256]),
    group=st.integers(1, 9),
    num_tokens=st.integers(1, 12),
    position=st.one_of(st.integers(0, 200), st.integers(CHUNK_POSITIONS - 9, CHUNK_POSITIONS + 9)),
    window=st.sampled_from([0, 1, 9, 64, 100, 512, 600]),
    cap=st.sampled_from([0.0, 3.0, 50.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_the_oracle(kernels, wide, dim, group, num_tokens, position, window, cap, seed):
    head = Head(seed, position + num_tokens, dim, wide)
    q = head.queries(num_tokens * group)
    check(kernels, head, q, group, position, window, cap)


@pytest.mark.parametrize("window", [0, 500, 512, 513, 1100])
@pytest.mark.parametrize("position", [511, 512, 1023, 1500])
def test_several_chunks(kernels, position, window):
    head = Head(position, position + 5, 32, 0)
    check(kernels, head, head.queries(15), 3, position, window, 0.0)


@given(
    wide=st.integers(0, 1),
    dim=st.sampled_from([16, 48, 64, 128]),
    group=st.integers(1, 5),
    num_tokens=st.integers(2, 16),
    position=st.one_of(st.integers(0, 130), st.integers(CHUNK_POSITIONS - 9, CHUNK_POSITIONS + 9)),
    window=st.sampled_from([0, 1, 9, 64, 100]),
    cap=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_do_not_depend_on_the_rows_beside(
    kernels, wide, dim, group, num_tokens, position, window, cap, seed
):
    """One token alone walks fewer pages, reads halves instead of a widened page: the same bits."""
    head = Head(seed, position + num_tokens, dim, wide)
    q = head.queries(num_tokens * group)
    together = run(kernels, head, q, group, position, window, cap)
    for token in range(num_tokens):
        rows = slice(token * group, (token + 1) * group)
        alone = run(kernels, head, q[rows], group, position + token, window, cap)
        np.testing.assert_array_equal(alone.view(np.uint32), together[rows].view(np.uint32))


@pytest.mark.parametrize("head_dim", [12, 18, 40, 70])
def test_padded_heads(kernels, head_dim):
    """Dimensions past head_dim are zero in the cache and do not come out."""
    dim = -(-head_dim // 16) * 16
    head = Head(0, 100, dim, 1)
    head.keys[:, head_dim:] = head.values[:, head_dim:] = 0
    blocks = to_pages(head.keys, head.values, head.table, len(head.pages), np.float32)
    head.pages[:, : blocks[0].size] = blocks.reshape(len(blocks), -1)
    q = head.queries(6)
    q[:, head_dim:] = 0
    found = run(kernels, head, q, 2, 97, head_dim=head_dim)
    expected = [attend(row, head.keys, head.values, 97 + r // 2) for r, row in enumerate(q)]
    assert np.abs(found - np.array(expected)[:, :head_dim]).max() <= TOLERANCE * 4


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_flat_and_sharp_softmax(kernels, scale):
    """Scores so large that one position takes all, or so small that all weigh the same."""
    head = Head(7, 700, 64, 1)
    q = head.queries(4)
    q *= np.float32(scale)
    check(kernels, head, q, 1, 690, 0, 0.0)


def test_a_window_never_reads_what_it_does_not_see(kernels):
    """Pages that fell out of every window may be given to others and hold anything."""
    head = Head(3, 900, 32, 0)
    q = head.queries(8)
    before = run(kernels, head, q, 2, 890, 100)
    head.pages[head.table[:12]] = np.nan  # positions below 768
    after = run(kernels, head, q, 2, 890, 100)
    np.testing.assert_array_equal(before, after)
    assert np.isfinite(after).all()


@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_nan_that_is_seen_shows(kernels, part):
    head = Head(3, 700, 32, 1)
    getattr(head, part)[30] = np.nan
    blocks = to_pages(head.keys, head.values, head.table, len(head.pages), np.float32)
    head.pages[:, : blocks[0].size] = blocks.reshape(len(blocks), -1)
    assert np.isnan(run(kernels, head, head.queries(4), 2, 650)).all()
    assert np.isfinite(run(kernels, head, head.queries(4), 2, 690, 100)).all()
