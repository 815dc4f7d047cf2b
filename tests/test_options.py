"""How a model is loaded, checked at the door."""

import numpy as np
import pytest

from fastllm import LLM, RequestError
from fastllm.kernels.layouts import LAYOUTS
from fastllm.options import QUANTS, LoadOptions
from fastllm.quants import QUANTIZABLE


class Odd:
    def __index__(self):
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def __repr__(self):
        return "odd"


@pytest.mark.parametrize("value", [0, -1, "2", 1.0, True, [4], b"4", float("nan"), Odd()], ids=repr)
@pytest.mark.parametrize("name", ["n_threads", "n_ctx", "n_batch"])
def test_what_is_no_number_of_them(name, value):
    with pytest.raises(RequestError) as error:
        LLM("does-not-matter", **{name: value})
    assert f"{name}={value!r}: must be a whole number from 1 to " in str(error.value)


@pytest.mark.parametrize(
    ("name", "largest"), [("n_threads", 1024), ("n_ctx", 2**31 - 1), ("n_batch", 2**20)]
)
def test_the_largest(name, largest):
    assert getattr(LoadOptions(**{name: largest}), name) == largest
    with pytest.raises(RequestError, match=f"{name}={largest + 1}: .* 1 to {largest}"):
        LoadOptions(**{name: largest + 1})


@pytest.mark.parametrize("value", ["q9", "", 8, True, ["q8_0"], np.array(["f16", "f32"])], ids=repr)
@pytest.mark.parametrize(
    ("name", "allowed"), [("quant", "q8_0, q4_0"), ("kv_type", "i16, f16, f32")]
)
def test_what_is_no_type(name, allowed, value):
    with pytest.raises(RequestError) as error:
        LLM("does-not-matter", **{name: value})
    assert f"{name}={value!r}: must be one of {allowed}" in str(error.value)


@pytest.mark.parametrize("name", ["n_threads", "n_ctx", "n_batch", "quant", "kv_type", "model"])
@pytest.mark.parametrize("value", ["x" * 10_000_000, ["y" * 1000] * 1000], ids=["text", "list"])
def test_an_error_does_not_repeat_a_large_value(name, value):
    with pytest.raises(RequestError, match=f"{name}=") as error:
        LLM(**{"model": "does-not-matter", name: value})
    assert len(str(error.value)) < 300


def test_none_is_the_default_where_there_is_one():
    assert LoadOptions(None, None, 512, None, None) == LoadOptions()
    with pytest.raises(RequestError, match="n_batch=None"):
        LoadOptions(n_batch=None)


def test_integers_of_numpy_become_plain():
    options = LoadOptions(n_threads=np.int64(3), n_ctx=np.uint8(7))
    assert (type(options.n_threads), type(options.n_ctx)) == (int, int)
    assert options == LoadOptions(3, 7)


def test_every_quant_is_built():
    # K-quants are written to files only: the loader converts rows that are a multiple of 32
    assert set(QUANTS) <= set(QUANTIZABLE) & set(LAYOUTS)
