"""Attention over pages, against the oracle: windows, caps, groups, scrambled blocks, chunks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.kernels.interpreter_codes import CHUNK_PAGES, STATE_BYTES
from fastllm.kernels.kv_page import F32, KV_TYPES, PAGE, page_bytes
from tests.kernels.probe import (
    CHUNK,
    FINISH,
    MERGE,
    STORE_KEY,
    STORE_QUERY,
    STORE_VALUE,
    bits,
)
from tests.kernels.samples import aligned, aligned_copy
from tests.naive.attention import attend, from_codes, to_codes, to_pages

# In units of the largest |value|: exp2 and the sums of a few hundred weights. Weights as codes are
# multiples of 1 / 32700 of a page's sum; theirs is a random walk of 64 such roundings.
TOLERANCE = {"f16": 2e-6, "f32": 2e-6, "i16": 1.5e-4}
CHUNK_POSITIONS = PAGE * CHUNK_PAGES
TYPES = pytest.mark.parametrize("kv_type", KV_TYPES)


class Head:
    """Keys and values of one kv head in scattered blocks, NaN where nothing is stored.

    `keys` and `values` are what the pages hold: rounded to halves, or to codes.
    """

    def __init__(self, seed, num_positions, dim, kv_type):
        self.rng = rng = np.random.default_rng(seed)
        self.dim, self.kv_type = dim, kv_type
        self.keys = rng.standard_normal((num_positions, dim)).astype(np.float32)
        self.values = rng.standard_normal((num_positions, dim)).astype(np.float32)
        num_pages = -(-num_positions // PAGE)
        self.table = aligned_copy(rng.permutation(num_pages + 3)[:num_pages].astype(np.int32), 64)
        # between blocks lie other heads
        size = 2 * page_bytes(dim, KV_TYPES[kv_type])
        self.pages = aligned((num_pages + 3, size), np.uint8)
        self.pages[:] = 255
        self.write()

    def write(self):
        """Store `keys` and `values`."""
        pages = to_pages(self.keys, self.values, self.table, len(self.pages), self.kv_type)
        self.pages[:, : pages.shape[1]] = pages
        if self.kv_type == "f16":
            self.keys, self.values = (x.astype(np.float16) for x in (self.keys, self.values))
        elif self.kv_type == "i16":
            self.keys, self.values = (from_codes(*to_codes(x)) for x in (self.keys, self.values))

    def queries(self, num_rows):
        """float32[num_rows, dim], as large as real ones: scores of a few units."""
        q = self.rng.standard_normal((num_rows, self.dim)) * 2 / math.sqrt(self.dim)
        return aligned_copy(q.astype(np.float32))


def as_read(kernels, head, q):
    """(queries as pages of this type read them, what they stand for)."""
    stored = aligned_copy(q)
    for row in stored:
        kernels.call(STORE_QUERY, row.ctypes.data, head.dim, KV_TYPES[head.kv_type])
    if head.kv_type != "i16":
        return stored, q
    units = stored[:, head.dim // 2].copy()
    return stored, from_codes(stored.view(np.int16)[:, : head.dim], units)


def run(kernels, head, q, group, position, window=0, cap=0.0, head_dim=None):
    """float32[rows, head_dim]: as the step does it, chunk by chunk, merged in order."""
    rows, dim = len(q), head.dim
    q = as_read(kernels, head, q)[0]
    head_dim = head_dim or dim
    total, part = aligned((rows + 4, dim), np.float32), aligned((rows + 4, dim), np.float32)
    total_state, state = (aligned((rows + 4) * STATE_BYTES) for _ in range(2))
    scratch = aligned(1024 + page_bytes(dim, F32) + 64)
    last_page = (position + (rows - 1) // group) // PAGE + 1
    for first in range(0, last_page, CHUNK_PAGES):
        o, s = (part, state) if first else (total, total_state)
        kernels.call(
            CHUNK, q.ctypes.data, rows, group, position, window, bits(cap), dim,
            head.pages.ctypes.data, head.pages.strides[0], KV_TYPES[head.kv_type],
            head.table.ctypes.data,
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


def check(kernels, head, q, group, position, window, cap, slack=0.0):
    found = run(kernels, head, q, group, position, window, cap)
    expected = [
        attend(row, head.keys, head.values, position + r // group, window, cap)
        for r, row in enumerate(as_read(kernels, head, q)[1])
    ]
    assert np.abs(found - expected).max() <= TOLERANCE[head.kv_type] * 4 + slack
    return found


@TYPES
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
def test_against_the_oracle(kernels, kv_type, dim, group, num_tokens, position, window, cap, seed):
    head = Head(seed, position + num_tokens, dim, kv_type)
    q = head.queries(num_tokens * group)
    check(kernels, head, q, group, position, window, cap)


@TYPES
@pytest.mark.parametrize("window", [0, 500, 512, 513, 1100])
@pytest.mark.parametrize("position", [511, 512, 1023, 1500])
def test_several_chunks(kernels, kv_type, position, window):
    head = Head(position, position + 5, 32, kv_type)
    check(kernels, head, head.queries(15), 3, position, window, 0.0)


@given(
    kv_type=st.sampled_from(sorted(KV_TYPES)),
    dim=st.sampled_from([16, 48, 64, 128]),
    group=st.integers(1, 5),
    num_tokens=st.integers(2, 16),
    position=st.one_of(st.integers(0, 130), st.integers(CHUNK_POSITIONS - 9, CHUNK_POSITIONS + 9)),
    window=st.sampled_from([0, 1, 9, 64, 100]),
    cap=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_do_not_depend_on_the_rows_beside(
    kernels, kv_type, dim, group, num_tokens, position, window, cap, seed
):
    """One token alone walks fewer pages, reads halves instead of a widened page: the same bits."""
    head = Head(seed, position + num_tokens, dim, kv_type)
    q = head.queries(num_tokens * group)
    together = run(kernels, head, q, group, position, window, cap)
    for token in range(num_tokens):
        rows = slice(token * group, (token + 1) * group)
        alone = run(kernels, head, q[rows], group, position + token, window, cap)
        np.testing.assert_array_equal(alone.view(np.uint32), together[rows].view(np.uint32))


@TYPES
@pytest.mark.parametrize("head_dim", [12, 18, 40, 70])
def test_padded_heads(kernels, kv_type, head_dim):
    """Dimensions past head_dim are zero in the cache and do not come out."""
    dim = -(-head_dim // 16) * 16
    head = Head(0, 100, dim, kv_type)
    head.keys[:, head_dim:] = head.values[:, head_dim:] = 0
    head.write()
    q = head.queries(6)
    q[:, head_dim:] = 0
    found = run(kernels, head, q, 2, 97, head_dim=head_dim)
    expected = [
        attend(row, head.keys, head.values, 97 + r // 2)
        for r, row in enumerate(as_read(kernels, head, q)[1])
    ]
    assert np.abs(found - np.array(expected)[:, :head_dim]).max() <= TOLERANCE[kv_type] * 4


@TYPES
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_flat_and_sharp_softmax(kernels, kv_type, scale):
    """Scores so large that one position takes all, or so small that all weigh the same."""
    head = Head(7, 700, 64, kv_type)
    q = head.queries(4)
    q *= np.float32(scale)
    # the last bit of a score is worth that much of a weight
    check(kernels, head, q, 1, 690, 0, 0.0, slack=1e-6 * scale)


@TYPES
def test_a_window_never_reads_what_it_does_not_see(kernels, kv_type):
    """Pages that fell out of every window may be given to others and hold anything."""
    head = Head(3, 900, 32, kv_type)
    q = head.queries(8)
    before = run(kernels, head, q, 2, 890, 100)
    head.pages[head.table[:12]] = 255  # positions below 768
    after = run(kernels, head, q, 2, 890, 100)
    np.testing.assert_array_equal(before, after)
    assert np.isfinite(after).all()


@TYPES
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_nan_that_is_seen_shows(kernels, kv_type, part, value):
    head = Head(3, 700, 32, kv_type)
    row = aligned_copy(np.full(32, value, np.float32))
    what = STORE_KEY if part == "keys" else STORE_VALUE
    page = head.pages[head.table[0]]
    over = kernels.call(what, page.ctypes.data, 30, 32, KV_TYPES[kv_type], row.ctypes.data)
    if kv_type == "f16" and value == np.inf:
        assert over  # the step ends: it is stored as the largest half
        return
    assert not over
    found = run(kernels, head, head.queries(4), 2, 650)
    assert not np.isfinite(found).any(axis=1).all()
    assert np.isfinite(run(kernels, head, head.queries(4), 2, 690, 100)).all()


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_component_that_is_no_number_shows(kernels, part, value):
    """It has no code: its unit is NaN, whatever the query's sign there is."""
    head = Head(3, 70, 32, "i16")
    row = aligned_copy(head.rng.standard_normal(32).astype(np.float32))
    row[5] = value
    what = STORE_KEY if part == "keys" else STORE_VALUE
    page = head.pages[head.table[0]]
    kernels.call(what, page.ctypes.data, 30, 32, KV_TYPES["i16"], row.ctypes.data)
    assert np.isnan(run(kernels, head, head.queries(8), 2, 60)).any(axis=1).all()


@TYPES
@given(
    dim=st.sampled_from([16, 48, 64, 128, 256]),
    exponent=st.integers(-24, 30),  # below 2**-100 is zero
    sparse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_stored(kernels, kv_type, dim, exponent, sparse, seed):
    """A key and a value of each slot, where and as the oracle puts them."""
    rng = np.random.default_rng(seed)
    if kv_type == "f16":
        exponent = max(-4, min(4, exponent))
    keys, values = (rng.standard_normal((2, PAGE, dim)) * 10.0**exponent).astype(np.float32)
    if sparse:  # one component is all the length there is, or there is none
        keys[:, 1:] = values[::2] = 0
    number = KV_TYPES[kv_type]
    page = aligned(page_bytes(dim, number), np.uint8)
    page[:] = 255
    for slot in rng.permutation(PAGE):
        for what, rows in ((STORE_KEY, keys), (STORE_VALUE, values)):
            row = aligned_copy(rows[slot])
            assert kernels.call(what, page.ctypes.data, slot, dim, number, row.ctypes.data) == 0
    (expected,) = to_pages(keys, values, np.zeros(1, np.int32), 1, kv_type)
    if kv_type != "i16":
        np.testing.assert_array_equal(page, expected)
        return
    half, codes = len(page) // 2, 2 * PAGE * dim
    for first in (0, half):  # units may differ in their last bit, and a code on the edge by one
        found, wanted = (
            x[first : first + codes].view(np.int16).astype(int) for x in (page, expected)
        )
        assert np.abs(found - wanted).max() <= 1
        assert (found != wanted).mean() <= 0.01
        found, wanted = (x[first + codes : first + half].view(np.float32) for x in (page, expected))
        np.testing.assert_allclose(found, wanted, rtol=5e-7)


@given(
    dim=st.sampled_from([16, 64, 128, 256, 512]),
    kind=st.sampled_from(["equal", "one", "opposite", "random"]),
    exponents=st.tuples(st.integers(-24, 30), st.integers(-8, 8)),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_never_overflow(kernels, dim, kind, exponents, seed):
    """Products of the longest vectors of codes there are: parallel ones."""
    rng = np.random.default_rng(seed)
    x = np.ones(dim) if kind != "random" else rng.standard_normal(dim)
    if kind == "one":
        x[1:] = 0
    size = 10.0 ** exponents[0]
    head = Head(seed, 70, dim, "i16")
    head.keys = np.tile((x * size).astype(np.float32), (70, 1))
    if kind == "opposite":
        head.keys[::2] *= -1
    head.write()
    scale = 10.0 ** exponents[1] / (size * (x @ x))
    q = aligned_copy(np.tile((x * scale).astype(np.float32), (3, 1)))
    check(kernels, head, q, 3, 69, 0, 0.0)
