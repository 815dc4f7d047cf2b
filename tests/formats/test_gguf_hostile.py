"""GGUF headers that lie: each lie refused with its place, thousands of mutations survived."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import FastLLMError, FormatError, UnsupportedError
from fastllm.formats.gguf import open_gguf
from tests.formats import samples
from tests.formats.mutations import mutate

HUGE = (2**32, 2**61, 2**63, 2**64 - 1)


def text(value, length=None):
    return struct.pack("<Q", len(value) if length is None else length) + value


def build(keys=(), tensors=(), num_keys=None, num_tensors=None, data_bytes=4096):
    head = b"GGUF" + struct.pack(
        "<IQQ",
        3,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    raw = head + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + bytes(data_bytes)


def key(name, kind, body):
    return text(name) + struct.pack("<I", kind) + body


def tensor(name=b"w", dims=(32,), kind=0, offset=0):
    packed = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


def refused(raw, *words, error=FormatError):
    with pytest.raises(error) as caught:
        samples.parse_gguf(raw)
    message = str(caught.value)
    assert message.startswith("sample: ")
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize("number", HUGE)
def test_counts_and_lengths(number):
    refused(build(num_keys=number), "number of keys", "offset 16", str(number))
    refused(build(num_tensors=number), "number of tensors", "offset 8", str(number))
    refused(build([text(b"k", number)]), "length of key 0", "offset 24", str(number))
    refused(build([key(b"k", 8, text(b"", number))]), "key 'k'", str(number))
    for element in (0, 1, 6, 7, 8, 9, 12):
        array = struct.pack("<IQ", element, number)
        refused(build([key(b"k", 9, array)]), "length of key 'k'", str(number))
    strings = struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b", number)
    refused(build([key(b"k", 9, strings)]), "string 1 of key 'k'", str(number))


def test_names():
    refused(build([key(b"k" * 65536, 7, b"\0")], data_bytes=10**5), "length of key 0", "65535")
    refused(build([key(b"\xff", 7, b"\0")]), "not UTF-8")
    refused(build([key(b"k", 7, b"\0"), key(b"k", 7, b"\0")]), "key 'k' appears twice")
    refused(build((), [tensor(b"\xff\xfe")]), "not UTF-8")
    refused(build((), [tensor(), tensor(offset=128)]), "tensor 'w' appears twice")
    escape = b"\x1b[2J\n" + b"x" * 200
    refused(build((), [tensor(escape, dims=(2**40,))]), r"\x1b[2J\n")


def test_types():
    refused(build([key(b"k", 13, b"\0" * 8)]), "unknown value type 13")
    refused(build([key(b"k", 9, struct.pack("<IQ", 77, 0))]), "unknown value type 77")
    refused(build((), [tensor(kind=99)]), "'w'", "99", "offset", error=UnsupportedError)
    refused(build((), [tensor(kind=16)]), "iq2_xxs", error=UnsupportedError)


def test_nested_arrays():
    def nested(depth, count=1):
        return struct.pack("<IQ", 9, count) * depth + struct.pack("<IQ", 0, 0)

    assert samples.parse_gguf(build([key(b"k", 9, nested(3))])).metadata["k"][0][0][0].size == 0
    for depth in (4, 5, 100, 100_000):
        refused(build([key(b"k", 9, nested(depth))]), "nested more than 4 deep")
    # Many at each level cannot multiply: each needs its own bytes.
    refused(build([key(b"k", 9, nested(3, count=300))]), "key 'k'")


@pytest.mark.parametrize("value", [0, 3, 33, 2**32 - 1])
def test_alignment(value):
    raw = build([key(b"general.alignment", 4, struct.pack("<I", value))], [tensor()])
    refused(raw, "general.alignment", str(value))


def test_alignment_of_another_type_or_beyond_the_file():
    refused(build([key(b"general.alignment", 8, text(b"32"))]), "general.alignment")
    refused(build([key(b"general.alignment", 5, struct.pack("<i", -32))]), "general.alignment")
    raw = build([key(b"general.alignment", 4, struct.pack("<I", 2**31))], [tensor()])
    refused(raw, "truncated")


@pytest.mark.parametrize("number", HUGE)
def test_dimensions_and_offsets(number):
    refused(build((), [tensor(dims=(number,))]), "'w'", "file")
    refused(build((), [tensor(dims=(number, number, number, number))]), "file")
    refused(build((), [tensor(dims=(0, 1 << 61, number))]), "any file")
    refused(build((), [tensor(offset=number // 32 * 32)]), "the file has")
    refused(build((), [tensor(dims=(32,) * 5)]), "5 dimensions")
    packed = text(b"w") + struct.pack("<I", number % 2**32 or 9) + bytes(64)
    refused(build((), [packed]), "dimensions")


def test_tensor_geometry():
    refused(build((), [tensor(dims=(0, 1 << 63))]), "more elements than any file")
    refused(build((), [tensor(dims=(33,), kind=2)]), "q4_0", "33")
    refused(build((), [tensor(dims=(), kind=2)]), "q4_0")
    refused(build((), [tensor(offset=8)]), "not a multiple of 32")
    refused(build((), [tensor(b"a"), tensor(b"b", offset=96)]), "overlap", "'a'", "'b'")
    refused(build((), [tensor(b"a"), tensor(b"b")]), "overlap")
    file = samples.parse_gguf(build((), [tensor(b"b", offset=128), tensor(b"a", dims=())]))
    assert file.tensors["a"].shape == ()
    assert file.tensors["a"].nbytes == 4


def test_every_truncation_is_refused():
    raw = samples.gguf_bytes(samples.metadata(5))
    end = max(t.offset + t.nbytes for t in samples.parse_gguf(raw).tensors.values())
    for size in [*range(3000), *range(3000, end, 97)]:
        refused(raw[:size])


RAW = samples.gguf_bytes(samples.metadata(20))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_mutations(seed):
    # 40 examples of 100 inputs: hypothesis finds and keeps the seed, the inner loop the speed.
    rng = random.Random(seed)
    for _ in range(100):
        raw = mutate(RAW, rng, 4000)
        try:
            file = samples.parse_gguf(raw)
        except FastLLMError as error:
            samples.check_message(error)
        else:
            for info in file.tensors.values():
                assert 0 <= info.offset <= info.offset + info.nbytes <= len(raw)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=400), version=st.sampled_from([2, 3]))
def test_noise_behind_the_magic(raw, version):
    with pytest.raises(FastLLMError):
        samples.parse_gguf(b"GGUF" + struct.pack("<IQQ", version, 1, 1) + raw)


def test_mutations_on_disk(tmp_path):
    rng = random.Random(5)
    path = tmp_path / "m.gguf"
    for _ in range(200):
        path.write_bytes(mutate(RAW, rng, 4000))
        try:
            assert open_gguf(path).path == str(path)
        except FastLLMError as error:
            samples.check_message(error)
