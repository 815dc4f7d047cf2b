"""The writer: inferred types, values it refuses, and no half file whatever goes wrong."""

import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import FastLLMError, FormatError, ReadError, RequestError, UnsupportedError
from fastllm.formats.gguf import open_gguf
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from tests.formats import samples


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool"),
        (0, "uint32"),
        (2**32 - 1, "uint32"),
        (-1, "int32"),
        (2**32, "int64"),
        (-(2**31) - 1, "int64"),
        (2**63, "uint64"),
        (1.5, "float32"),
        ("x", "string"),
        ([1, -2], "array[int32]"),
        ([2**31], "array[int64]"),
        ([1, 0.5], "array[float32]"),
        ([True], "array[bool]"),
        (["a"], "array[string]"),
        ([], "array[string]"),
        ([["a"], [1]], "array[array]"),
        (np.float64(0.1), "float64"),
        (np.uint8(3), "uint8"),
        (np.bool_(True), "bool"),
        (np.arange(3, dtype=np.int16), "array[int16]"),
        (np.array([True, False]), "array[bool]"),
        (np.arange(3, dtype=">i8"), "array[int64]"),
        (Typed("uint16", 3), "uint16"),
        (Typed("array[uint8]", [1, 2]), "array[uint8]"),
    ],
)
def test_inferred_types(value, kind):
    file = samples.parse_gguf(samples.gguf_bytes({"k": value}, []))
    assert file.types["k"] == kind
    value = value.value if isinstance(value, Typed) else value
    np.testing.assert_array_equal(file.metadata["k"], value)


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(),
    st.lists(st.text(), max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(keys=st.dictionaries(st.text(min_size=1, max_size=20), SCALARS, max_size=6))
def test_any_metadata_round_trips(keys):
    keys.pop("general.alignment", None)
    got = samples.parse_gguf(samples.gguf_bytes(keys, [])).metadata
    assert list(got) == list(keys)
    for key, value in keys.items():
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        2**64,
        [1, "a"],
        [None],
        {"a": 1},
        b"x",
        1j,
        np.zeros((2, 2)),
        np.float16(1),
        np.zeros(2, np.float16),
        "\ud800",
        Typed("nothing", 1),
        Typed("array[nothing]", [1]),
        Typed("string", 5),
        Typed("array[uint8]", 5),
        Typed("uint32", "x"),
    ],
)
def test_values_it_refuses(value, tmp_path):
    with pytest.raises(RequestError, match=r"^key 'k': "):
        write_gguf(tmp_path / "x.gguf", {"k": value}, [])
    assert os.listdir(tmp_path) == []


def test_names_it_refuses(tmp_path):
    one = np.zeros(1, np.float32)
    for keys, tensors in [
        ({"": 1}, []),
        ({"k" * 65536: 1}, []),
        ({}, [NewTensor("", "f32", (1,), one)]),
        ({}, [NewTensor("w", "f32", (1,), one)] * 2),
        ({}, [NewTensor("w", "f32", (1, 1, 1, 1, 1), one)]),
        ({}, [NewTensor("w", "f32", (0,), one[:0])]),
    ]:
        with pytest.raises(RequestError):
            write_gguf(tmp_path / "x.gguf", keys, tensors)
    with pytest.raises(FormatError, match="32"):
        write_gguf(tmp_path / "x.gguf", {}, [NewTensor("w", "q4_0", (33,), one)])
    with pytest.raises(UnsupportedError, match="'q9'"):
        write_gguf(tmp_path / "x.gguf", {}, [NewTensor("w", "q9", (32,), one)])
    assert os.listdir(tmp_path) == []


def test_streamed_chunks(tmp_path):
    whole = np.arange(4 * 40, dtype=np.float32).reshape(4, 40)
    path = tmp_path / "x.gguf"
    chunks = (whole[i : i + 1] for i in range(4))
    strided = np.repeat(whole, 2, axis=1)[:, ::2]
    write_gguf(
        path,
        {},
        [NewTensor("a", "f32", (4, 40), chunks), NewTensor("b", "f32", (4, 40), strided)],
    )
    file, raw = open_gguf(path), path.read_bytes()
    for name in "ab":
        info = file.tensors[name]
        assert raw[info.offset : info.offset + info.nbytes] == whole.tobytes()


@pytest.mark.parametrize("sizes", [(39,), (41,), (40, 1), ()])
def test_chunks_that_do_not_add_up(tmp_path, sizes):
    chunks = [np.zeros(size, np.float32) for size in sizes]
    with pytest.raises(RequestError, match="takes 160"):
        write_gguf(tmp_path / "x.gguf", {}, [NewTensor("w", "f32", (40,), chunks)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ReadError("source: gone"), KeyboardInterrupt(), ValueError("x")])
def test_a_source_that_fails_leaves_the_old_file(tmp_path, error):
    def chunks():
        yield np.zeros(8, np.float32)
        raise error

    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        write_gguf(path, {}, [NewTensor("w", "f32", (40,), chunks())])
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(FastLLMError, match=r"x\.gguf: cannot be written: No space left") as caught:
        write_gguf(tmp_path / "x.gguf", {}, samples.tensors())
    assert not isinstance(caught.value, RequestError)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FastLLMError, match="cannot be written: No such file"):
        write_gguf(tmp_path / "no" / "x.gguf", {}, [])


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", tmp_path):
        with pytest.raises(FastLLMError, match="no regular file"):
            write_gguf(path, {}, [])
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_of_a_link_its_target_is_written(tmp_path):
    (tmp_path / "other").mkdir()
    link, target = tmp_path / "link.gguf", tmp_path / "other" / "model.gguf"
    link.symlink_to(target)
    for _ in range(2):  # a link to nothing first
        write_gguf(link, {"general.name": "x"}, [])
        assert link.is_symlink()
        assert open_gguf(target).metadata == {"general.name": "x"}
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
