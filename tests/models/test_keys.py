import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from fastllm.models.keys import Keys, shown

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def keys(**values):
    return Keys(values, "config.json")


def test_first_spelling_present_wins_and_null_is_absent():
    assert keys(a=None, b=7).integer("a", "b") == 7
    assert keys(a=None).integer("a", default=3) == 3
    assert not keys(a=None).has("a")


def test_missing_is_named():
    with pytest.raises(FormatError, match=r"config\.json: llama\.size is missing"):
        Keys({}, "config.json", "llama.").integer("size")


@pytest.mark.parametrize("value", [True, 1.0, "1", [], {}, -1, 0, 1 << 60])
def test_integer_refuses(value):
    with pytest.raises(FormatError, match="size"):
        keys(size=value).integer("size")


def test_one_number_a_layer_must_be_one_number():
    assert keys(size=[4, 4, 4]).integer("size") == 4
    assert keys(size=np.array([4, 4], np.uint32)).integer("size") == 4
    for sizes in [4, 8], np.array([4, 8], np.uint32):
        with pytest.raises(UnsupportedError, match=r"size is \[4, 8\], different numbers"):
            keys(size=sizes).integer("size")


@pytest.mark.parametrize("value", [True, "1", [1.0], math.nan, math.inf, -1.0, 10**400])
def test_number_refuses(value):
    with pytest.raises(FormatError, match="eps"):
        keys(eps=value).number("eps", high=1.0)


@pytest.mark.parametrize("value", [0, 1, "true", []])
def test_flag_refuses(value):
    with pytest.raises(FormatError, match="bias"):
        keys(bias=value).flag("bias")


def test_numbers_checks_length_and_entries():
    assert keys(f=[1, 2.5]).numbers("f", length=2, low=0, high=3) == (1.0, 2.5)
    with pytest.raises(FormatError, match="f has 1 numbers, expected 2"):
        keys(f=[1]).numbers("f", length=2, low=0, high=3)
    with pytest.raises(FormatError, match="f is 9"):
        keys(f=[1, 9]).numbers("f", length=2, low=0, high=3)


def test_refuse_names_key_and_value():
    keys(mode=None).refuse("mode", built=(1,))
    keys(mode=1).refuse("mode", built=(1,))
    with pytest.raises(UnsupportedError, match="mode is 'x', which is not built; built: 1"):
        keys(mode="x").refuse("mode", built=(1,))


def test_long_values_are_cut():
    assert len(shown("x" * 1000)) == 60


@given(value=JSON)
def test_any_value_gives_its_type_or_our_error(value):
    read = keys(k=value)
    for reader, kind in (
        (read.integer, int),
        (read.number, float),
        (read.flag, bool),
        (read.text, str),
        (read.section, (Keys, type(None))),
    ):
        with contextlib.suppress(FastLLMError):
            assert isinstance(reader("k"), kind)
