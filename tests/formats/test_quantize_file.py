"""Rewriting a model in another type."""

import os
from dataclasses import replace

import gguf
import numpy as np
import pytest
import safetensors.numpy

from fastllm.errors import FormatError, RequestError, UnsupportedError
from fastllm.formats import quantize_file
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.formats.mixtures import MIXTURES, matters_most
from fastllm.formats.quantize_file import quantize_checkpoint
from fastllm.quants import quantize
from tests.formats import samples

RNG = np.random.default_rng(1)
MATRIX = RNG.standard_normal((10, 64), np.float32)
TENSORS = {
    "token_embd.weight": MATRIX * 2,
    "blk.0.attn_q.weight": MATRIX,
    "blk.0.attn_q.bias": MATRIX[0],
    "blk.0.attn_norm.weight": MATRIX[1],
    "blk.0.attn_k_norm.weight": MATRIX[:2],
    "blk.0.ffn_gate_inp.weight": MATRIX[:4],
    "blk.0.ffn_up_exps.weight": MATRIX[:6].reshape(2, 3, 64),
    "blk.0.odd.weight": np.ascontiguousarray(MATRIX[:, :33]),
    "output.weight": MATRIX * 3,
}


def write(path, arrays, keys, type="f32"):
    tensors = [
        NewTensor(name, type, array.shape, quantize(type, array)) for name, array in arrays.items()
    ]
    write_gguf(path, keys, tensors)


def make(path, arrays):
    write(path, arrays, samples.metadata())
    return open_checkpoint(path)


@pytest.fixture
def source(tmp_path):
    return make(tmp_path / "source.gguf", TENSORS)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1"])
def test_types_and_values(source, tmp_path, type, monkeypatch):
    monkeypatch.setattr(quantize_file, "_CHUNK", 200)  # three rows at a time
    seen = []
    path = tmp_path / "out.gguf"
    stats = quantize_checkpoint(source, path, type, lambda done, total: seen.append((done, total)))
    result = open_checkpoint(path)
    types = {name: info.type for name, info in result.tensors.items()}
    assert types == {
        "token_embd.weight": type,
        "blk.0.attn_q.weight": type,
        "blk.0.attn_q.bias": "f32",
        "blk.0.attn_norm.weight": "f32",
        "blk.0.attn_k_norm.weight": "f32",
        "blk.0.ffn_gate_inp.weight": "f32",
        "blk.0.ffn_up_exps.weight": type,
        "blk.0.odd.weight": "f16",
        "output.weight": "q8_0",
    }
    for name, array in TENSORS.items():
        assert result.read(name).tobytes() == quantize(types[name], array).tobytes()
        assert result.tensors[name].shape == array.shape
    assert stats.num_tensors == 9
    assert stats.num_converted == 5
    assert stats.file_bytes == path.stat().st_size
    assert sum(stats.types.values()) == 9
    assert seen[-1] == (stats.source_bytes, stats.source_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > len(TENSORS)


def test_metadata_is_kept_with_its_types(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "out.gguf", "q4_1")
    result = open_checkpoint(tmp_path / "out.gguf")
    assert result.metadata["general.file_type"] == 3
    assert result.metadata["general.quantization_version"] == 2
    for key, kind in source.metadata_types.items():
        assert result.metadata_types[key] == kind
        if key not in ("general.file_type", "t.nested"):
            np.testing.assert_array_equal(result.metadata[key], source.metadata[key])
    for name, mixture in MIXTURES.items():
        prefix = "ALL_" if name == "f32" else "MOSTLY_"
        suffix = "_S" if name in ("q4_k", "q5_k") else ""
        assert gguf.LlamaFileType[prefix + name.upper() + suffix] == mixture.file_type


MIXED = {
    "token_embd.weight": (4, 256),
    "output.weight": (4, 256),
    **{
        f"blk.{i}.{part}.weight": (4, columns)
        for i in range(16)
        for part, columns in (("attn_v", 256), ("ffn_down", 512), ("attn_qkv", 256))
    },
    "blk.0.attn_q.weight": (4, 256),
    "blk.0.ffn_up.weight": (4, 96),
    "blk.1.ffn_down.weight": (4, 288),
    "blk.0.attn_k.weight": (4, 40),
}


def mixed(path, arch="llama", head=True):
    arrays = {
        name: RNG.standard_normal(shape, np.float32)
        for name, shape in MIXED.items()
        if head or name != "output.weight"
    }
    keys = {"general.architecture": arch, f"{arch}.block_count": 16}
    write(path, arrays, keys)
    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("type", "base", "qkv"), [("q4_k_m", "q4_k", "q5_k"), ("q5_k_m", "q5_k", "q6_k")]
)
def test_the_mixture_of_llama_cpp(tmp_path, type, base, qkv):
    source = mixed(tmp_path / "s.gguf")
    stats = quantize_checkpoint(source, tmp_path / "out.gguf", type)
    result = open_checkpoint(tmp_path / "out.gguf")
    types = {name: info.type for name, info in result.tensors.items()}
    assert types["output.weight"] == "q6_k"
    assert types["token_embd.weight"] == types["blk.0.attn_q.weight"] == base
    # Of 16 layers: two at each end, and each third one between from the fifth on.
    most = {0, 1, 4, 7, 10, 13, 14, 15}
    assert {i for i in range(16) if matters_most(i, 16)} == most
    for i in range(16):
        assert types[f"blk.{i}.attn_v.weight"] == ("q6_k" if i in most else base)
        assert types[f"blk.{i}.attn_qkv.weight"] == qkv
    assert types["blk.2.ffn_down.weight"] == base
    assert types["blk.4.ffn_down.weight"] == "q6_k"
    # 288 and 96 columns are no whole number of 256, 40 not even of 32.
    assert types["blk.1.ffn_down.weight"] == "q8_0"
    assert types["blk.0.ffn_up.weight"] == {"q4_k": "q5_0", "q5_k": "q5_1"}[base]
    assert types["blk.0.attn_k.weight"] == "f16"
    assert stats.rounded_twice == ()
    # The format's own library reads what was written.
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values, result.read_float32(tensor.name))


def test_mixtures_of_falcon_and_of_a_tied_embedding(tmp_path):
    quantize_checkpoint(mixed(tmp_path / "s.gguf", "falcon", head=False), tmp_path / "o", "q4_k_m")
    types = {name: info.type for name, info in open_checkpoint(tmp_path / "o").tensors.items()}
    assert types["token_embd.weight"] == "q6_k"
    assert [types[f"blk.{i}.ffn_down.weight"] for i in (0, 2, 4)] == ["q6_k", "q4_k", "q5_k"]


@pytest.mark.parametrize("type", ["q4_k", "q5_k", "q6_k"])
def test_k_quants_and_rounding_twice(tmp_path, type):
    first = tmp_path / "first.gguf"
    quantize_checkpoint(mixed(tmp_path / "s.gguf"), first, type)
    assert open_checkpoint(first).tensors["blk.0.attn_q.weight"].type == type
    assert quantize_checkpoint(open_checkpoint(first), tmp_path / "same", type).rounded_twice == ()
    stats = quantize_checkpoint(open_checkpoint(first), tmp_path / "again", "q8_0")
    assert type in stats.rounded_twice


def test_tied_embedding_keeps_eight_bits(tmp_path):
    arrays = {name: array for name, array in TENSORS.items() if name != "output.weight"}
    quantize_checkpoint(make(tmp_path / "s.gguf", arrays), tmp_path / "out.gguf", "q4_0")
    result = open_checkpoint(tmp_path / "out.gguf")
    assert result.tensors["token_embd.weight"].type == "q8_0"
    assert result.tensors["blk.0.attn_q.weight"].type == "q4_0"


def test_quantized_and_split_sources(tmp_path):
    arrays = {"blk.0.a.weight": MATRIX, "blk.0.b.weight": MATRIX * 2}
    for no, (name, array) in enumerate(arrays.items()):
        keys = {"split.no": Typed("uint16", no), "split.count": Typed("uint16", 2), "k": 1}
        write(tmp_path / f"m-{no + 1:05d}-of-00002.gguf", {name: array}, keys, "q4_0")
    source = open_checkpoint(tmp_path)
    quantize_checkpoint(source, tmp_path / "same.gguf", "q4_0")
    same = open_checkpoint(tmp_path / "same.gguf")
    assert same.metadata.keys() == {"k", "general.file_type", "general.quantization_version"}
    for name in arrays:  # copied, not rounded twice
        np.testing.assert_array_equal(same.read(name), source.read(name))
    quantize_checkpoint(source, tmp_path / "eight.gguf", "q8_0")
    back = open_checkpoint(tmp_path / "eight.gguf").read_float32("blk.0.a.weight")
    assert np.abs(back - source.read_float32("blk.0.a.weight")).max() < 0.02


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    bad = MATRIX.copy()
    bad[7, 5] = value
    source = make(tmp_path / "s.gguf", {"blk.0.attn_q.weight": bad})
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_q\.weight'.* NaN"):
        quantize_checkpoint(source, tmp_path / "out.gguf", "q8_0")
    assert os.listdir(tmp_path) == ["s.gguf"]


def test_refusals(source, tmp_path):
    with pytest.raises(RequestError, match="'q2_k'; can: "):
        quantize_checkpoint(source, tmp_path / "out.gguf", "q2_k")
    with pytest.raises(RequestError, match="is the source itself"):
        quantize_checkpoint(source, source.path, "q8_0")
    with pytest.raises(RequestError, match="no tensors"):
        quantize_checkpoint(replace(source, tensors={}), tmp_path / "out.gguf", "q8_0")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    safetensors.numpy.save_file({"w": MATRIX}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UnsupportedError, match="as_gguf makes one"):
        quantize_checkpoint(open_checkpoint(tmp_path / "hf"), tmp_path / "out.gguf", "q8_0")
    assert not os.path.exists(tmp_path / "out.gguf")
