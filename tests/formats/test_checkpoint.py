"""open_checkpoint: what is in a file or folder decides; reads give exact bytes or say why not."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from fastllm.errors import (
    FormatError,
    ModelNotFoundError,
    ReadError,
    RequestError,
    UnsupportedError,
)
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.quants import dequantize
from tests.formats import samples


@pytest.fixture
def gguf_path(tmp_path):
    # The suffix says nothing.
    path = tmp_path / "model.bin"
    path.write_bytes(samples.gguf_bytes())
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "hf"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (path / "tokenizer.json").write_text("{}")
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "h": np.ones(2, np.float16)}
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    return path


def test_gguf(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    assert checkpoint.kind == "gguf"
    assert checkpoint.path == str(gguf_path)
    assert checkpoint.metadata["general.architecture"] == "llama"
    assert checkpoint.metadata_types["general.file_type"] == "uint32"
    assert checkpoint.generation_config == checkpoint.tokenizer_files == {}


def test_reads_are_exact(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    for tensor in samples.tensors():
        stored = tensor.chunks.view(np.uint8)
        raw = checkpoint.read(tensor.name)
        assert raw.tobytes() == stored.tobytes()
        assert raw.flags.writeable
        values = checkpoint.read_float32(tensor.name)
        np.testing.assert_array_equal(values, dequantize(tensor.type, stored).reshape(tensor.shape))
        if len(tensor.shape) == 2:
            np.testing.assert_array_equal(checkpoint.read_rows(tensor.name, 1, 1), stored[1:])
            assert checkpoint.read_rows(tensor.name, 2, 0).size == 0


def test_rows_and_names_that_are_not_there(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    for start, count in ((0, 3), (2, 1), (-1, 1), (1, -1)):
        with pytest.raises(RequestError, match="it has 2"):
            checkpoint.read_rows("blk.0.q4_0.weight", start, count)
    for read in (checkpoint.read, checkpoint.read_float32, checkpoint.tensor):
        with pytest.raises(FormatError, match="no tensor 'nothing'"):
            read("nothing")


def test_a_file_that_shrinks_or_goes(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    info = checkpoint.tensors["output_norm.weight"]
    os.truncate(gguf_path, info.offset + 5)
    with pytest.raises(ReadError, match=rf"model\.bin: ends at offset {info.offset + 5}"):
        checkpoint.read("output_norm.weight")
    os.remove(gguf_path)
    with pytest.raises(ReadError, match=rf"cannot be read at offset {info.offset}"):
        checkpoint.read("output_norm.weight")


def test_short_reads_are_put_together(gguf_path, monkeypatch):
    class Stingy:
        def __init__(self, path, *args, **kwargs):
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def seek(self, offset):
            self.file.seek(offset)

        def readinto(self, view):
            return self.file.readinto(view[:7])

    checkpoint = open_checkpoint(gguf_path)
    whole = checkpoint.read("blk.0.q6_k.weight")
    monkeypatch.setattr("fastllm.formats.checkpoint.open", Stingy, raising=False)
    np.testing.assert_array_equal(checkpoint.read("blk.0.q6_k.weight"), whole)


def test_huggingface_folder(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.kind == "hf"
    assert checkpoint.path == str(folder)
    assert checkpoint.metadata == {"architectures": ["X"]}
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.tokenizer_files == {"tokenizer.json": str(folder / "tokenizer.json")}
    assert checkpoint.read_float32("w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.read_float32("h").tolist() == [1, 1]
    assert open_checkpoint(folder / "model.safetensors").tensors == checkpoint.tensors


def test_a_dtype_that_is_only_described(folder):
    safetensors.numpy.save_file({"flags": np.array([True])}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.read("flags").tolist() == [1]
    with pytest.raises(UnsupportedError, match="'bool'"):
        checkpoint.read_float32("flags")


def test_sharded_folder(folder):
    os.rename(folder / "model.safetensors", folder / "one.safetensors")
    safetensors.numpy.save_file({"v": np.zeros(1, np.float32)}, folder / "two.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"2 safetensors files, but no model\.safe"):
        open_checkpoint(folder)
    weight_map = {"w": "one.safetensors", "h": "one.safetensors", "v": "two.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(folder).tensors.keys() == weight_map.keys()
    os.remove(folder / "two.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"two\.safetensors"):
        open_checkpoint(folder)


def test_folder_without_config(folder):
    os.remove(folder / "config.json")
    with pytest.raises(ModelNotFoundError, match=r"config\.json: missing"):
        open_checkpoint(folder)


def test_tokenizer_only_folder(folder):
    os.remove(folder / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"no \*\.gguf"):
        open_checkpoint(folder)
    checkpoint = open_checkpoint(folder, weights=False)
    assert checkpoint.tensors == {}
    assert checkpoint.tokenizer_files.keys() == {"tokenizer.json"}


def test_pickles_are_refused(folder):
    os.remove(folder / "model.safetensors")
    for name, start in (("pytorch_model.bin", b"PK\x03\x04"), ("old.pt", b"\x80\x02")):
        (folder / name).write_bytes(start + bytes(100))
        for path in (folder, folder / name):
            with pytest.raises(UnsupportedError, match="convert them to safetensors"):
                open_checkpoint(path)
        os.remove(folder / name)


def test_folder_of_gguf(tmp_path):
    raw = samples.gguf_bytes()
    (tmp_path / "a.gguf").write_bytes(raw)
    assert open_checkpoint(tmp_path).path == str(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(raw)
    with pytest.raises(RequestError, match=r"2 GGUF models, say which: 'a\.gguf', 'b\.gguf'"):
        open_checkpoint(tmp_path)


def test_folder_of_split_gguf(tmp_path):
    for no in (0, 1):
        keys = {"split.no": Typed("uint16", no), "split.count": Typed("uint16", 2)}
        data = [NewTensor(f"t{no}", "f32", (1,), np.array([no], np.float32))]
        write_gguf(tmp_path / f"m-{no + 1:05d}-of-00002.gguf", keys, data)
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint.read_float32(name)[0] for name in ("t0", "t1")] == [0, 1]


def test_other_files(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"tjgg" + bytes(50))
    with pytest.raises(UnsupportedError, match="before GGUF"):
        open_checkpoint(path)
    for raw in (b"", b"hello, world", bytes(100)):
        path.write_bytes(raw)
        with pytest.raises(FormatError, match="neither a GGUF nor a safetensors"):
            open_checkpoint(path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match="not a path"):
        open_checkpoint("a\0b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no \*\.gguf"):
        open_checkpoint(tmp_path / "empty")
