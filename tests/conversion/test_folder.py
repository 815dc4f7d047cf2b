"""A folder as a GGUF file, against the converter of the tests and against transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from fastllm.conversion import as_gguf
from fastllm.errors import FormatError, RequestError, UnsupportedError
from fastllm.formats import checkpoint, quantize_file
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.formats.quantize_file import quantize_checkpoint
from fastllm.models.bind import bind
from fastllm.quants import quantize
from tests.golden import saved
from tests.golden.cases import Case, case, cases, materialize, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of

# float32 rounding in another order; the folder and the file hold the same numbers.
TOLERANCE = 1e-5
# Keys that the tests' converter leaves to readers, or that only say what a model is called.
MORE = {"general.file_type", "general.quantization_version", "general.name"}


def written(folder: Path, path: Path, kind: str = "f32"):
    quantize_checkpoint(as_gguf(open_checkpoint(folder)), path, kind)
    return open_checkpoint(path)


def write_safetensors(path: Path, arrays, kind: str) -> None:
    """Write tensors of a type that NumPy lacks."""
    header, data = {}, b""
    for name, array in arrays.items():
        raw = quantize(kind, array.reshape(len(array), -1)).tobytes()
        places = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind.upper(), "shape": array.shape, "data_offsets": places}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def logits(checkpoint, token_ids, n_ctx=None):
    bound = bind(checkpoint)
    return forward(bound.decoder, weights_of(bound, checkpoint), token_ids, n_ctx=n_ctx)


@pytest.mark.parametrize("one", cases(), ids=lambda case: case.name)
def test_tensors_and_keys_are_those_of_the_converter(one: Case, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize_file, "_CHUNK", 700)  # a few rows at a time, across heads
    expected = open_checkpoint(materialize_gguf(one, tmp_path / "expected"))
    found = written(materialize(one, tmp_path / "folder"), tmp_path / "found.gguf")
    assert found.tensors.keys() == expected.tensors.keys()
    for name, info in expected.tensors.items():
        assert found.tensors[name].shape == info.shape, name
        values = found.read_float32(name), expected.read_float32(name)
        if name.startswith("rope_"):
            np.testing.assert_allclose(*values, rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(*values, err_msg=name)
    for key, value in expected.metadata.items():
        assert key in found.metadata or key.endswith(
            (".attention.scale", "softcapping", "yarn_attn_factor")
        ), key
        if key in found.metadata and not key.endswith(("hidden_act", "window_pattern")):
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
            assert found.metadata[key] == same, key
    np.testing.assert_allclose(
        logits(found, one.token_ids, one.n_ctx),
        one.logits,
        atol=2e-4 * one.logits.std(),
    )


SAVED = [changed for family in saved.families() for changed in saved.saved(family)]


@pytest.mark.parametrize("model", SAVED, ids=lambda model: f"{model.family} {model.name}")
def test_every_key_is_carried_over_or_refused(model, tmp_path):
    """What transformers computes after each change of config.json, also from the file."""
    folder = saved.materialize(model, tmp_path / "folder")
    try:
        bind(open_checkpoint(folder))
    except (UnsupportedError, FormatError):
        return  # not read as a folder either
    try:
        found = written(folder, tmp_path / "m.gguf")
    except UnsupportedError as error:
        assert "GGUF has no way to say that" in str(error)  # noqa: PT017
        assert model.has_effect
        return
    got = logits(found, model.token_ids)[-1][:: saved.EVERY]
    assert np.abs(got - model.logits).max() <= 2e-4 * model.logits.std()


def test_what_metadata_cannot_say_is_refused(tmp_path):
    folder = materialize(case("llama-rope-yarn"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    key = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    config[key] |= {"truncate": False, "original_max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnsupportedError, match=r"no way to say that ropes\[0\] is .*truncate=False"
    ):
        as_gguf(open_checkpoint(folder))


@pytest.mark.parametrize("name", ["llama", "falcon-new", "gemma3", "phi3", "opt"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_sixteen_bits_lose_nothing_but_their_rounding(name, kind, tmp_path):
    """Weights of 16 bits in the folder: the file has the same bits, vectors in float32."""
    one = case(name)
    folder = materialize(one, tmp_path / "folder")
    write_safetensors(folder / "model.safetensors", one.weights(), kind)
    found = written(folder, tmp_path / "m.gguf", kind)
    for tensor, info in found.tensors.items():
        assert info.type == ("f32" if len(info.shape) == 1 else kind), tensor
    np.testing.assert_allclose(
        logits(found, one.token_ids, one.n_ctx),
        logits(open_checkpoint(folder), one.token_ids, one.n_ctx),
        atol=TOLERANCE,
    )
    # The format's own library reads it, too.
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {tensor.name for tensor in reader.tensors} == found.tensors.keys()


def test_rows_in_any_cut_are_those_of_the_whole(tmp_path):
    view = as_gguf(open_checkpoint(materialize(case("falcon-new"), tmp_path / "folder")))
    for name, info in view.tensors.items():
        whole = view.read(name)
        assert whole.nbytes == info.nbytes
        if len(info.shape) == 1:
            continue
        rows = [view.read_rows(name, i, 1)[0] for i in range(info.shape[0])]
        np.testing.assert_array_equal(np.concatenate(rows), whole)
        with pytest.raises(RequestError, match="it has"):
            view.read_rows(name, info.shape[0], 1)


@pytest.mark.parametrize("name", ["falcon-new", "llama", "phi3"])
def test_no_more_is_read_at_a_time_than_is_converted(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize_file, "_CHUNK", 300)
    sizes = []
    read = checkpoint.read_bytes

    def seen(path, offset, num_bytes):
        sizes.append(num_bytes)
        return read(path, offset, num_bytes)

    folder = open_checkpoint(materialize(case(name), tmp_path / "folder"))
    view = as_gguf(folder)
    largest_vector = max(t.nbytes for t in folder.tensors.values() if len(t.shape) == 1)
    monkeypatch.setattr(checkpoint, "read_bytes", seen)
    quantize_checkpoint(view, tmp_path / "m.gguf", "q8_0")
    row = max(t.shape[-1] for t in folder.tensors.values())
    assert max(sizes) <= 4 * max(300, row, largest_vector // 4)
