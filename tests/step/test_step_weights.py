"""Weights in memory are the file's, in panels, however they were read."""

from dataclasses import replace

import numpy as np
import pytest

from fastllm.errors import FormatError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.kernels import objects
from fastllm.kernels.layouts import LAYOUTS
from fastllm.models.bind import MatrixSource, RowSegment, bind
from fastllm.quants import quantize
from fastllm.step import weights as module
from fastllm.step.weights import Weights, packed_types
from tests.golden.cases import case, materialize
from tests.naive.panels import pack_reference
from tests.naive.weights import weights_of
from tests.step.batches import Part, feed
from tests.step.models import quantized


@pytest.fixture(scope="module")
def pack():
    return objects.addresses(["pack"])["pack"]


@pytest.fixture
def opened(pack):
    kept = []

    def open_(bound, quant=None):
        kept.append(Weights(bound, pack, 2, quant))
        kept[-1].wait()
        return kept[-1]

    yield open_
    for weights in kept:
        weights.close()


def panels(weights, role):
    """uint8[num_panels, panel_bytes] as they lie in memory."""
    matrix = weights.matrices[role]
    size = matrix.layout.matrix_bytes(matrix.rows, matrix.columns)
    ((_, _, address),) = matrix.spans
    return weights.arena.view(address, size).reshape(matrix.num_panels, -1)


def native_rows(source):
    """The rows of a matrix as its file has them."""
    parts = []
    for segment in source.segments:
        tensor = segment.tensor
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            raw = np.frombuffer(file.read(tensor.nbytes), np.uint8).reshape(tensor.shape[0], -1)
        parts.append(raw[segment.first_row : segment.first_row + segment.num_rows])
    return np.concatenate(parts)


@pytest.fixture(params=["phi3", "falcon-new", "gemma2", "opt-projected", *LAYOUTS])
def bound(request, tmp_path):
    """Fused tensors, tied heads, projections; every type."""
    if request.param in LAYOUTS:
        return bind(quantized(tmp_path / "model.gguf", request.param))
    return bind(open_checkpoint(materialize(case(request.param), tmp_path / "model")))


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, module.CHUNK_BYTES])
def test_every_matrix_is_its_rows_in_panels(bound, opened, monkeypatch, chunk_bytes):
    """Read at once, in a few runs of panels, or panel by panel."""
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    weights = opened(bound)
    assert set(weights.matrices) == set(packed_types(bound, None))
    for role, matrix in weights.matrices.items():
        source = bound.matrix(role)
        assert (matrix.type, (matrix.rows, matrix.columns)) == (source.type, source.shape)
        expected = pack_reference(source.type, native_rows(source))
        np.testing.assert_array_equal(panels(weights, role), expected)


def test_vectors_are_padded_and_offset(bound, opened):
    weights = opened(bound)
    offset = 1.0 if bound.decoder.config.architecture.startswith("gemma") else 0.0
    assert set(weights.vectors) == set(bound.vector_roles)
    for role, address in weights.vectors.items():
        values = bound.vector(role)
        padded = -(-len(values) // 16) * 16
        found = weights.arena.view(address, 4 * padded).view(np.float32)
        np.testing.assert_array_equal(found[: len(values)], values + np.float32(offset))
        assert (found[len(values) :] == 0).all()


@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "q4_1", "f16", "bf16"])
def test_quantized_while_loading(opened, tmp_path, quant):
    """The panels are those of the rows that `quantize` writes."""
    checkpoint = open_checkpoint(materialize(case("llama-round"), tmp_path / "model"))
    bound = bind(checkpoint)
    weights, values = opened(bound, quant), weights_of(bound, checkpoint)
    for role, matrix in weights.matrices.items():
        assert matrix.type == quant
        expected = pack_reference(quant, quantize(quant, values(role)))
        np.testing.assert_array_equal(panels(weights, role), expected)


def test_rows_that_are_no_whole_blocks_stay(opened, tmp_path):
    bound = bind(open_checkpoint(materialize(case("llama"), tmp_path / "model")))
    weights = opened(bound, "q8_0")  # 48 and 80 columns
    assert {matrix.type for matrix in weights.matrices.values()} == {"f32"}


def test_blocks_are_not_quantized_again(opened, tmp_path):
    bound = bind(quantized(tmp_path / "model.gguf", "q4_1"))
    assert set(packed_types(bound, "q8_0").values()) == {"q4_1"}


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_a_model_quantized_while_loading_computes(load, tmp_path, quant):
    checkpoint = open_checkpoint(materialize(case("llama-round"), tmp_path / "model"))
    golden = case("llama-round")
    logits = feed(load(checkpoint, n_threads=2, quant=quant), Part(golden.token_ids, 0, [0]))
    difference = np.sqrt(((logits - golden.logits) ** 2).mean()) / golden.logits.std()
    assert difference <= {"q8_0": 0.03, "q4_0": 0.3}[quant]


def test_a_looked_up_table_is_not_held(opened, tmp_path):
    """An untied embedding stays in its file; a tied one is the head and is held once."""
    untied = opened(bind(open_checkpoint(materialize(case("llama"), tmp_path / "untied"))))
    tied = opened(bind(open_checkpoint(materialize(case("llama-tied"), tmp_path / "tied"))))
    assert "embed_tokens" not in untied.matrices
    assert "lm_head" in untied.matrices
    assert "embed_tokens" in tied.matrices
    assert "lm_head" not in tied.matrices


def test_a_matrix_of_pieces_in_two_files(opened, tmp_path):
    first, second = (
        bind(open_checkpoint(materialize(replace(case("llama"), seed=seed), tmp_path / str(seed))))
        for seed in (1, 2)
    )
    role = "lm_head"
    one, other = first.matrix(role).segments[0].tensor, second.matrix(role).segments[0].tensor
    pieces = RowSegment(one, 100, 31), RowSegment(other, 0, 70), RowSegment(one, 0, 30)
    source = MatrixSource("f32", (131, 48), pieces)
    first._matrices[role] = source
    weights = opened(first)
    expected = pack_reference("f32", native_rows(source))
    np.testing.assert_array_equal(panels(weights, role), expected)


def test_a_vector_with_nan_is_refused(tmp_path, opened):
    checkpoint = quantized(tmp_path / "model.gguf", "q4_0")
    tensor = checkpoint.tensors["blk.1.ffn_norm.weight"]
    with open(tensor.path, "r+b") as file:
        file.seek(tensor.offset + 8)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_norm\.weight holds NaN"):
        opened(bind(checkpoint))
