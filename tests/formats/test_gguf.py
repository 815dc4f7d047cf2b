"""GGUF: what is written is read, by us and by the gguf package; split files; frozen bytes."""

import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FormatError, ModelNotFoundError, UnsupportedError
from fastllm.formats import gguf_header
from fastllm.formats.gguf import open_gguf
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from tests.formats import samples


def plain(value):
    return value.value if isinstance(value, Typed) else value


def test_round_trip(tmp_path):
    path = tmp_path / "model.gguf"
    size = write_gguf(path, samples.metadata(), samples.tensors())
    assert size == path.stat().st_size
    file = open_gguf(path)
    assert (file.version, file.alignment, file.shards) == (3, 32, (str(path),))
    wanted = samples.metadata()
    assert list(file.metadata) == list(wanted)
    for key, value in wanted.items():
        got, value = file.metadata[key], plain(value)
        if key == "t.nested":
            assert [list(inner) for inner in got] == value
        elif key in ("general.name", "t.float64") or not isinstance(value, float):
            np.testing.assert_array_equal(got, value)
        else:
            assert got == np.float32(value)
        assert isinstance(got, (type(value), np.ndarray))
    assert list(file.tensors) == [tensor.name for tensor in samples.tensors()]
    raw = path.read_bytes()
    for tensor in samples.tensors():
        info = file.tensors[tensor.name]
        assert (info.name, info.type, info.shape) == (tensor.name, tensor.type, tensor.shape)
        assert raw[info.offset : info.offset + info.nbytes] == tensor.chunks.tobytes()
        assert info.offset % 32 == 0


def test_types_survive_a_second_round(tmp_path):
    write_gguf(tmp_path / "a.gguf", samples.metadata(), [])
    first = open_gguf(tmp_path / "a.gguf")
    assert first.types["t.uint16"] == "uint16"
    assert first.types["t.float64"] == "float64"
    assert first.types["general.file_type"] == "uint32"
    assert first.types["tokenizer.ggml.tokens"] == "array[string]"
    again = {key: Typed(first.types[key], value) for key, value in first.metadata.items()}
    write_gguf(tmp_path / "b.gguf", again, [])
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_gguf_package_reads_it(tmp_path):
    path = tmp_path / "model.gguf"
    keys = samples.metadata()
    keys["tokenizer.ggml.tokens"] = keys["tokenizer.ggml.tokens"][:-3]  # it demands UTF-8
    write_gguf(path, keys, samples.tensors())
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert ours.metadata.keys() == {k for k in theirs.fields if not k.startswith("GGUF.")}
    for key, value in ours.metadata.items():
        if key != "t.nested":  # it flattens
            np.testing.assert_array_equal(value, theirs.get_field(key).contents())
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.type == tensor.tensor_type.name.lower()
    assert len(theirs.tensors) == len(ours.tensors)


def test_files_of_the_gguf_package(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("tokenizer.ggml.tokens", [b"a\xff", b"b"])
    writer.add_float64("x", 0.25)
    writer.add_tensor("w", np.arange(6, dtype=np.float16).reshape(2, 3))
    writer.add_tensor("v", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(path)
    assert file.alignment == 64
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert [token.encode("utf-8", "surrogateescape") for token in tokens] == [b"a\xff", b"b"]
    assert file.metadata["x"] == 0.25
    assert file.tensors["w"].shape == (2, 3)
    raw = path.read_bytes()
    info = file.tensors["v"]
    assert np.frombuffer(raw, "<f4", 5, info.offset).tolist() == [0, 1, 2, 3, 4]


def text(value):
    return struct.pack("<Q", len(value)) + value


def test_frozen_bytes_and_version_2():
    raw = b"GGUF" + struct.pack("<IQQ", 2, 1, 1)
    raw += text(b"k") + struct.pack("<I", 4) + struct.pack("<I", 7)
    raw += text(b"w") + struct.pack("<I", 2) + struct.pack("<QQ", 32, 2)
    raw += struct.pack("<IQ", 2, 0)
    start = -(-len(raw) // 32) * 32
    raw = raw.ljust(start, b"\0") + bytes(36)
    file = samples.parse_gguf(raw)
    assert file.version == 2
    assert file.metadata == {"k": 7}
    info = file.tensors["w"]
    assert (info.type, info.shape, info.offset, info.nbytes) == ("q4_0", (2, 32), start, 36)


def test_strings_across_buffer_ends(tmp_path):
    # The reader's buffer is 1 MiB; strings of odd sizes and one larger than the buffer.
    tokens = [f"{i}" * (i % 50) for i in range(60_000)] + ["x" * (3 << 20), "end"]
    write_gguf(tmp_path / "big.gguf", {"tokens": tokens, "after": 1}, [])
    metadata = open_gguf(tmp_path / "big.gguf").metadata
    assert metadata["tokens"] == tokens
    assert metadata["after"] == 1


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"\0", b"\0" * 9, b"x" * 255, b"y" * 256, b"\xe2\x82", b"\x05" + bytes(7)]
    ),
)


@given(st.lists(st.tuples(PIECES, st.integers(1, 90)), max_size=12), st.integers(0, 40))
def test_strings_in_runs_of_any_kind(runs, cut):
    """Short ones, long ones, and those that look like the length of another."""
    strings = [piece + str(i).encode() * bool(piece) for piece, count in runs for i in range(count)]
    raw = b"".join(text(string) for string in strings)
    buffer = b"?" * cut + raw + b"\7"  # and what follows, cut off
    out = []
    end = gguf_header._whole_strings(buffer, cut, len(strings) + (cut % 2), out)
    assert end == cut + len(raw)
    assert out == [string.decode("utf-8", "surrogateescape") for string in strings]


def test_strings_that_are_not_utf8():
    keys = {"text": "a\udcffb", "list": ["a\udcffb"]}
    metadata = samples.parse_gguf(samples.gguf_bytes(keys, [])).metadata
    assert metadata == {"text": "a\ufffdb", "list": ["a\udcffb"]}


def write_shards(folder, count=3, no=range(3), total=3):
    names = [f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, name in enumerate(names):
        keys = {
            "split.no": Typed("uint16", no[i]),
            "split.count": Typed("uint16", count),
            "split.tensors.count": Typed("int32", total),
        }
        if i == 0:
            keys["general.name"] = "whole"
        data = [NewTensor(f"t{i}", "f32", (4,), np.full(4, i, np.float32))]
        write_gguf(folder / name, keys, data)
    return [str(folder / name) for name in names]


def test_split_files_open_together(tmp_path):
    paths = write_shards(tmp_path)
    for path in paths:  # any shard leads to all
        file = open_gguf(path)
        assert file.metadata["general.name"] == "whole"
        assert [info.path for info in file.tensors.values()] == paths
        assert file.shards == tuple(paths)


def test_missing_shards_are_named(tmp_path):
    paths = write_shards(tmp_path)
    os.remove(paths[1])
    with pytest.raises(ModelNotFoundError, match=r"1 of 3 shards .* m-00002-of-00003\.gguf"):
        open_gguf(paths[0])


def test_shards_that_lie(tmp_path):
    paths = write_shards(tmp_path, no=(0, 2, 1))
    with pytest.raises(FormatError, match="says it is shard 2"):
        open_gguf(paths[0])
    paths = write_shards(tmp_path, total=4)
    with pytest.raises(FormatError, match=r"split\.tensors\.count says 4"):
        open_gguf(paths[0])
    paths = write_shards(tmp_path)
    os.rename(paths[0], tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="names"):
        open_gguf(tmp_path / "renamed.gguf")
    twice = [NewTensor("t0", "f32", (1,), np.zeros(1, np.float32))]
    keys = {"split.no": 0, "split.count": 2}
    write_gguf(tmp_path / "d-00001-of-00002.gguf", keys, twice)
    write_gguf(tmp_path / "d-00002-of-00002.gguf", {**keys, "split.no": 1}, twice)
    with pytest.raises(FormatError, match="another shard"):
        open_gguf(tmp_path / "d-00001-of-00002.gguf")


def test_no_file_and_no_gguf(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf: no such file"):
        open_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        open_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        open_gguf(tmp_path / "pipe")
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(FormatError, match="not a GGUF file"):
        open_gguf(tmp_path / "x.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(FormatError, match="truncated"):
        open_gguf(tmp_path / "empty.gguf")


@pytest.mark.parametrize(
    ("version", "message"), [(1, "version 1"), (4, "version 4"), (0x03000000, "big-endian")]
)
def test_other_versions(version, message):
    raw = bytearray(samples.gguf_bytes({}, []))
    raw[4:8] = struct.pack("<I", version)
    with pytest.raises(UnsupportedError, match=message):
        samples.parse_gguf(bytes(raw))


def test_a_dimension_of_zero_is_ggmls():
    from tests.formats.test_gguf_hostile import build, tensor

    file = samples.parse_gguf(build((), [tensor(b"none", dims=(4, 0)), tensor(b"one", dims=(1,))]))
    assert file.tensors["none"].shape == (0, 4)
    assert file.tensors["none"].nbytes == 0
    assert file.tensors["one"].nbytes == 4
