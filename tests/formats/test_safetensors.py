"""Safetensors: files of the safetensors package, one or several with an index."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from fastllm.errors import FormatError, ModelNotFoundError
from fastllm.formats.safetensors import open_safetensors, open_safetensors_index
from tests.formats import samples


def test_files_of_the_safetensors_package(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 4), np.float32),
        "b.c": rng.standard_normal(5).astype(np.float16),
        "ids": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        "none": np.zeros((0, 2), np.uint8),
        "scalar": np.array(1.5, np.float64),
        "flags": np.array([True, False]),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "np"})
    file = open_safetensors(path)
    raw = path.read_bytes()
    assert file.metadata == {"format": "np"}
    assert file.shards == (str(path),)
    assert file.tensors.keys() == arrays.keys()
    types = {name: info.type for name, info in file.tensors.items()}
    assert types == {
        "a": "f32", "b.c": "f16", "ids": "i64", "none": "u8", "scalar": "f64", "flags": "bool",
    }  # fmt: skip
    for name, array in arrays.items():
        info = file.tensors[name]
        assert info.shape == array.shape
        assert raw[info.offset : info.offset + info.nbytes] == array.tobytes()


def test_bfloat16_and_frozen_bytes():
    raw = samples.safetensors_bytes()
    info = samples.parse_safetensors(raw).tensors["b.weight"]
    data = 8 + int.from_bytes(raw[:8], "little")
    assert (info.type, info.shape, info.offset, info.nbytes) == ("bf16", (4,), data + 24, 8)


def write_shards(folder):
    files = {"m-1.safetensors": ["a", "b"], "m-2.safetensors": ["c"]}
    for file_name, names in files.items():
        arrays = {name: np.full(3, ord(name), np.float32) for name in names}
        safetensors.numpy.save_file(arrays, folder / file_name)
    weight_map = {name: file for file, names in files.items() for name in names}
    return write_index(folder, weight_map)


def write_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_index(tmp_path):
    file = open_safetensors_index(write_shards(tmp_path))
    assert {name: os.path.basename(info.path) for name, info in file.tensors.items()} == {
        "a": "m-1.safetensors",
        "b": "m-1.safetensors",
        "c": "m-2.safetensors",
    }
    names = [os.path.basename(path) for path in file.shards]
    assert names == ["m-1.safetensors", "m-2.safetensors"]


def test_index_with_missing_files_names_them(tmp_path):
    index = write_shards(tmp_path)
    os.remove(tmp_path / "m-2.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"1 of 2 shards .*m-2\.safetensors"):
        open_safetensors_index(index)
    with pytest.raises(ModelNotFoundError, match=r"12 of 12 .* and 7 more"):
        open_safetensors_index(write_index(tmp_path, {f"t{i}": f"f{i:02}" for i in range(12)}))


def test_index_that_lies(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(FormatError, match="'z' is not in it"):
        open_safetensors_index(write_index(tmp_path, {"z": "m-1.safetensors"}))
    for name in ("../m-1.safetensors", "/etc/passwd", "..", "", 5, None, "a\0b", "a\\b"):
        with pytest.raises(FormatError, match="beside the index"):
            open_safetensors_index(write_index(tmp_path, {"a": name}))
    for weight_map in ({}, [], None, "x"):
        with pytest.raises(FormatError, match="weight_map"):
            open_safetensors_index(write_index(tmp_path, weight_map))
