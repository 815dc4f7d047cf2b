"""Safetensors headers that lie, and thousands of mutations of one that does not."""

import random

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from tests.formats import samples
from tests.formats.mutations import mutate, mutate_json


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(raw, *words, error=FormatError):
    with pytest.raises(error) as caught:
        samples.parse_safetensors(raw)
    message = str(caught.value)
    assert message.startswith("sample: ")
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize("length", [49, 10**8 + 1, 2**31, 2**63, 2**64 - 1])
def test_header_length(length):
    refused(length.to_bytes(8, "little") + b"{}" + bytes(46), "header claims", str(length))


def test_not_json():
    for text in (b"", b"[]", b" {}", b"\x00{}", b"null"):
        refused(samples.safetensors_bytes(text), "'{'")
    for text in (b"{", b'{"a":}', b"{}x", b'{"a":1,}'):
        refused(samples.safetensors_bytes(text), "not valid JSON")
    refused(samples.safetensors_bytes(b'{"\xff": 1}'), "not UTF-8")
    refused(samples.safetensors_bytes(b'{"a":' * 10**5), "nested too deeply")
    refused(samples.safetensors_bytes(b'{"a":' + b"[" * 10**6), "nested too deeply")
    refused(samples.safetensors_bytes(b'{"a":' + b"9" * 10**6 + b"}"), "1000000 digits")


def test_duplicates():
    one = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    raw = b'{"a":' + one + b',"a":' + one + b"}"
    refused(samples.safetensors_bytes(raw, 8), "'a' appears twice")
    twice = b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}'
    refused(samples.safetensors_bytes(twice, 8), "'dtype' appears twice")


@pytest.mark.parametrize("value", [5, None, [], "x", {}, {"dtype": "F32"}, {**entry(), "extra": 1}])
def test_entries_that_are_none(value):
    refused(samples.safetensors_bytes({"a": value}, 8), "'a'")


@pytest.mark.parametrize("value", [5, None, "x", [-1], [True], [1.0], ["2"], [[2]], [2**64]])
def test_shapes_and_offsets(value):
    refused(samples.safetensors_bytes({"a": entry(shape=value)}, 8), "'a'")
    refused(samples.safetensors_bytes({"a": entry(offsets=value)}, 8), "'a'")


def test_geometry():
    def one(**changes):
        return samples.safetensors_bytes({"a": entry(**changes)}, 8)

    assert samples.parse_safetensors(one()).tensors["a"].nbytes == 8
    refused(one(shape=[3]), "12 bytes", "data_offsets 8")
    refused(one(shape=[2**62, 2**62], offsets=[0, 2**64 - 1]), "'a'")
    # a zero does not excuse what stands beside it
    for shape in ([0, 2**64], [2**64, 0], [2**40, 2**40, 0]):
        refused(one(shape=shape, offsets=[0, 0]), "'a'", "larger than any file")
    refused(one(shape=[1] * 40 + [2]), "41 dimensions")
    refused(one(offsets=[8, 0]), "begin and an end")
    refused(one(offsets=[0, 4, 8]), "begin and an end")
    refused(one(shape=[4], offsets=[0, 16]), "truncated")
    refused(one(shape=[1], offsets=[0, 4]), "4 bytes behind the last tensor")
    refused(one(shape=[1], offsets=[4, 8]), "follows a hole")
    refused(samples.safetensors_bytes({"a": entry(), "b": entry()}, 8), "'b' overlaps")
    refused(one(dtype="F4"), "'F4'", error=UnsupportedError)
    refused(one(dtype=4), "dtype is not a string")


def test_metadata():
    for value in ([], "x", {"a": 1}):
        refused(samples.safetensors_bytes({"__metadata__": value}), "__metadata__")


def test_every_truncation_is_refused():
    raw = samples.safetensors_bytes()
    for size in range(len(raw)):
        refused(raw[:size])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_mutations(seed):
    # Whatever we accept, the reference implementation accepts too, with the same names.
    rng = random.Random(seed)
    good = samples.safetensors_bytes()
    for _ in range(100):
        raw = mutate_json(good, rng) if rng.random() < 0.5 else mutate(good, rng, len(good))
        try:
            file = samples.parse_safetensors(raw)
        except FastLLMError as error:
            samples.check_message(error)
        else:
            assert {n for n, _ in safetensors.deserialize(raw)} == file.tensors.keys()
