"""Sums, and contexts that fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import BudgetError
from fastllm.memory.ledger import Ledger, largest_context, settle_context
from fastllm.memory.pages import HUGE_BYTES, mapped

FIXED = 10_000_000


def ledger(n_ctx):
    return Ledger(n_ctx, 4_000_000, 1000 * (-(-n_ctx // 64) * 64), 3_000_000, 1_000_000, 2_000_000)


@given(st.integers(0, 1 << 40))
def test_mapped(nbytes):
    assert mapped(nbytes) % HUGE_BYTES == 0
    assert mapped(nbytes) >= max(nbytes, 1)
    assert mapped(nbytes) - nbytes < HUGE_BYTES or nbytes == 0


@given(free=st.integers(0, 20_000_000), longest=st.integers(1, 20_000))
def test_the_largest_context(free, longest):
    found = largest_context(ledger, longest, free)
    assert 0 <= found <= longest
    assert found == 0 or ledger(found).total <= free
    assert found == longest or ledger(found + 1).total > free


@given(
    free=st.integers(0, 20_000_000),
    asked=st.none() | st.integers(1, 9000),
    longest=st.integers(9000, 20_000),
)
def test_a_context_is_given_where_it_fits_and_the_text_is_true(free, asked, longest):
    limits = {"default": 8192, "longest": longest, "shortest": 64, "free": free}
    try:
        given_ = settle_context(ledger, asked=asked, **limits)
    except BudgetError as error:
        text = str(error)
        assert ledger(asked or 8192).total > free
        if "-c " in text:
            assert ledger(int(text.rpartition("-c ")[2].rstrip(")"))).total <= free
        else:
            assert f"{-(-ledger(64).total // 10**6)} MB" in text
            assert ledger(1).total > free
        return
    assert ledger(given_).total <= free
    if asked is None:
        assert given_ == 8192 or given_ % 64 == 0
    else:
        assert given_ == asked


def test_the_text_has_the_sum():
    with pytest.raises(BudgetError) as error:
        settle_context(ledger, asked=8192, default=8192, longest=9000, shortest=64, free=12_000_000)
    assert str(error.value) == (
        "the model needs 19 MB (4 MB weights + 9 MB KV cache of 8192 tokens + 4 MB buffers + "
        "2 MB process) and 12 MB are there: the longest context that fits has 1984 tokens (-c 1984)"
    )
