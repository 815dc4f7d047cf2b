"""Every weight found, checked and cut right; everything else refused."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastllm.errors import FormatError, UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models import roles
from fastllm.models.bind import bind
from fastllm.models.layers import Norm, walk
from tests.golden.cases import case, cases, materialize, materialize_gguf
from tests.naive.forward import forward
from tests.naive.weights import weights_of


@pytest.fixture
def folder(tmp_path):
    """Write a case as a folder, its tensors and config changed by callables; return it."""

    def write(name, change=lambda tensors: None, **config):
        path = materialize(case(name), tmp_path / "model")
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({**case(name).config, **config}))
        return path

    return write


def bind_path(path):
    return bind(open_checkpoint(path))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_sources_cover_their_matrices(case, tmp_path):
    bound = bind_path(materialize(case, tmp_path))
    shapes = roles.matrices(bound.decoder)
    assert set(bound.matrix_roles) == set(shapes)
    used = {}
    for role, shape in shapes.items():
        source = bound.matrix(role)
        assert source.shape == shape
        assert sum(segment.num_rows for segment in source.segments) == shape[0]
        for segment in source.segments:
            rows = used.setdefault(segment.tensor.name, np.zeros(segment.tensor.shape[0], int))
            rows[segment.first_row : segment.first_row + segment.num_rows] += 1
            assert segment.tensor.shape[1] == shape[1]
    # Fused or not, every row of every tensor belongs to exactly one matrix.
    assert all((rows == 1).all() for rows in used.values())
    for role, length in roles.vectors(bound.decoder).items():
        assert bound.vector(role).shape == (length,)


def test_every_norm_of_gemma_has_its_offset(tmp_path):
    decoder = bind_path(materialize(case("gemma3"), tmp_path)).decoder
    norms = [*walk(decoder, Norm)]
    assert all(norm.weight_offset == 1.0 for norm in norms)
    assert len(norms) == 1 + 6 * len(decoder.layers)


def test_tied_head_is_the_embedding(tmp_path):
    bound = bind_path(materialize(case("llama-tied"), tmp_path))
    assert bound.matrix("lm_head") is bound.matrix("embed_tokens")
    with pytest.raises(KeyError):
        bound.matrix("no_such_role")


@pytest.mark.parametrize(("name", "prefix"), [("llama-tied", "model."), ("gemma2", "model.")])
def test_stored_head_of_a_tied_model(folder, name, prefix):
    """A second copy of the embedding is left alone; another matrix is the head, as transformers
    has it."""

    def add_copy(tensors):
        tensors["lm_head.weight"] = tensors[f"{prefix}embed_tokens.weight"].copy()

    def add_other(tensors):
        add_copy(tensors)
        tensors["lm_head.weight"] *= 2

    bound = bind_path(folder(name, add_copy))
    assert bound.matrix("lm_head").segments[0].tensor.name == f"{prefix}embed_tokens.weight"
    bound = bind_path(folder(name, add_other))
    assert bound.matrix("lm_head").segments[0].tensor.name == "lm_head.weight"
    assert not bound.decoder.config.tie_word_embeddings


def test_stored_head_of_another_type_is_the_head(folder):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float16)

    assert bind_path(folder("llama-tied", add)).matrix("lm_head").type == "f16"


def test_names_without_prefix(folder):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    assert bind_path(folder("llama", strip)).matrix("layers.0.mlp.up_proj").shape == (80, 48)


def test_missing_weight_is_named(folder):
    path = folder("llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    message = r"model: tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"
    with pytest.raises(FormatError, match=message):
        bind_path(path)


def test_wrong_shape_is_named(folder):
    path = folder("llama", intermediate_size=81)
    with pytest.raises(FormatError, match=r"gate_proj\.weight is 80 x 48, .* asks for 81 x 48"):
        bind_path(path)


def test_wrong_shape_of_a_fused_tensor(folder):
    path = folder("phi3", num_key_value_heads=2)
    with pytest.raises(FormatError, match=r"qkv_proj\.weight is 144 x 48, .* asks for 96 x 48"):
        bind_path(path)


def test_leftovers_are_refused(folder):
    def add(tensors):
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(48, np.float32)

    with pytest.raises(UnsupportedError, match=r"1 tensors have no place .*q_proj\.bias"):
        bind_path(folder("llama", add))


def test_harmless_leftovers_are_ignored(folder):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(6, np.float32)

    assert bind_path(folder("llama", add)).kind == "hf"


def test_integers_are_no_weights(folder):
    def change(tensors):
        tensors["model.norm.weight"] = np.ones(48, np.int64)

    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight"):
        bind_path(folder("llama", change))


def test_nan_in_a_norm_is_named(folder):
    def change(tensors):
        tensors["model.layers.1.input_layernorm.weight"][7] = np.nan

    bound = bind_path(folder("llama", change))
    assert bound.vector("layers.0.input_layernorm").dtype == np.float32
    with pytest.raises(FormatError, match=r"layers\.1\.input_layernorm\.weight holds NaN"):
        bound.vector("layers.1.input_layernorm")


def test_ends_of_turns_from_generation_config(folder):
    path = folder("llama", eos_token_id=2)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert bind_path(path).decoder.config.eos_token_ids == (2, 9)


def test_errors_of_the_config_name_the_file(folder):
    path = folder("llama", hidden_act="quick_gelu")
    with pytest.raises(UnsupportedError, match=f"^{path}: config.json: hidden_act"):
        bind_path(path)


def test_gguf_llama_rotates_pairs_and_others_halves(tmp_path):
    for name, style in (("llama", "pairs"), ("mistral", "pairs"), ("qwen2", "half")):
        decoder = bind_path(materialize_gguf(case(name), tmp_path)).decoder
        assert {attention.rope_style for attention in decoder.attentions} == {style}
        decoder = bind_path(materialize(case(name), tmp_path / name)).decoder
        assert {attention.rope_style for attention in decoder.attentions} == {"half"}


def write_gguf(path, source, change):
    """Copy a GGUF file with other metadata or tensors; `change` edits both dicts."""
    checkpoint = open_checkpoint(source)
    metadata = dict(checkpoint.metadata)
    tensors = {name: checkpoint.read_float32(name) for name in checkpoint.tensors}
    change(metadata, tensors)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        if key.startswith("general."):
            continue
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        kinds[str] = writer.add_string
        kinds[list] = writer.add_array
        kinds[type(value)](key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_with_fused_queries_keys_and_values(tmp_path):
    golden = case("llama-bias")
    source = materialize_gguf(golden, tmp_path)

    def fuse(metadata, tensors):
        for i in range(2):
            for suffix in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{i}.attn_{part}.{suffix}") for part in "qkv"]
                tensors[f"blk.{i}.attn_qkv.{suffix}"] = np.concatenate(parts)

    checkpoint = open_checkpoint(write_gguf(tmp_path / "fused.gguf", source, fuse))
    bound = bind(checkpoint)
    logits = forward(bound.decoder, weights_of(bound, checkpoint), golden.token_ids)
    assert np.abs(logits - golden.logits).max() <= 2e-4 * golden.logits.std()


def test_gguf_vocabulary_from_the_embedding(tmp_path):
    source = materialize_gguf(case("llama"), tmp_path)

    def drop(metadata, tensors):
        del metadata["llama.vocab_size"]

    bound = bind_path(write_gguf(tmp_path / "plain.gguf", source, drop))
    assert bound.decoder.config.vocab_size == 131


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones(5, np.float32), r"rope_freqs\.weight is 5, .* asks for 6"),
        (np.zeros(6, np.float32), r"rope_freqs\.weight holds numbers that are not positive"),
        (np.full(6, np.nan, np.float32), r"rope_freqs\.weight holds numbers"),
    ],
)
def test_rope_tables_are_checked(tmp_path, table, message):
    source = materialize_gguf(case("llama-rope-llama3"), tmp_path)

    def change(metadata, tensors):
        tensors["rope_freqs.weight"] = table

    with pytest.raises(FormatError, match=message):
        bind_path(write_gguf(tmp_path / "bad.gguf", source, change))


def test_longrope_needs_both_tables(tmp_path):
    source = materialize_gguf(case("phi3-longrope-long"), tmp_path)

    def drop(metadata, tensors):
        del tensors["rope_factors_short.weight"]

    with pytest.raises(FormatError, match=r"rope_factors_short\.weight is missing"):
        bind_path(write_gguf(tmp_path / "half.gguf", source, drop))


@pytest.mark.parametrize("name", ["llama", "qwen2", "falcon"])
def test_longrope_of_any_gguf_file(tmp_path, name):
    source = materialize_gguf(case(name), tmp_path)
    arch = open_checkpoint(source).metadata["general.architecture"]
    pairs = bind_path(source).decoder.ropes[0].rotary_dim // 2

    def add(metadata, tensors):
        metadata[f"{arch}.rope.scaling.type"] = "longrope"
        metadata[f"{arch}.rope.scaling.original_context_length"] = 16
        metadata[f"{arch}.rope.scaling.attn_factor"] = 1.25
        tensors["rope_factors_short.weight"] = np.full(pairs, 1.5, np.float32)
        tensors["rope_factors_long.weight"] = np.full(pairs, 3.0, np.float32)

    (rope,) = bind_path(write_gguf(tmp_path / "long.gguf", source, add)).decoder.ropes
    assert (rope.scaling, rope.attention_factor) == ("longrope", 1.25)
    assert (rope.original_max_position_embeddings, rope.short_factor, rope.long_factor) == (
        16, (1.5,) * pairs, (3.0,) * pairs,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gemma3", "rope_freqs.weight"),
        ("opt", "rope_freqs.weight"),
        ("llama", "rope_factors_long.weight"),
    ],
)
def test_rope_tables_that_nobody_reads_are_refused(tmp_path, name, tensor):
    source = materialize_gguf(case(name), tmp_path)

    def add(metadata, tensors):
        tensors[tensor] = np.ones(6, np.float32)

    with pytest.raises(UnsupportedError, match=f"1 tensors have no place .*{tensor}"):
        bind_path(write_gguf(tmp_path / "more.gguf", source, add))
