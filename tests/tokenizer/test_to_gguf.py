"""A folder's tokenizer as GGUF keys: read back, the same tokens and the same text."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.errors import FormatError, ReadError, UnsupportedError
from fastllm.formats.gguf import open_gguf
from fastllm.formats.gguf_writer import write_gguf
from fastllm.tokenizer import Tokenizer, pre, to_gguf
from fastllm.tokenizer.sentencepiece_model import read_model
from fastllm.tokenizer.to_gguf import gguf_keys
from tests.tokenizer import tiny
from tests.tokenizer.fixtures import NAMES, expected, files, tokenizer

PRE = {
    "gpt2": "gpt-2",
    "smollm": "smollm",
    "falcon": "falcon",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "slow-opt": "gpt-2",
}
READ = [name for name in NAMES if not name.startswith("unigram")]


@pytest.mark.parametrize("name", READ)
def test_tokens_and_text_of_the_file_are_those_of_the_folder(name, tmp_path):
    folder, rows = tokenizer(name), expected(name)
    size = folder.vocab_size + 3  # embeddings have rows to spare
    found = gguf_keys(files(name), size)
    assert found.notes == ()
    keys = {**found.keys, "general.architecture": "llama"}
    write_gguf(tmp_path / "m.gguf", keys, [])
    file = Tokenizer.from_gguf(open_gguf(tmp_path / "m.gguf").metadata)
    assert file.vocab_size == size
    for text in rows["texts"]:
        for trusted in (False, True):
            ids = folder.encode(text, parse_special=trusted)
            assert file.encode(text, parse_special=trusted) == ids, text
            for skip in (False, True):
                assert file.decode(ids, skip) == folder.decode(ids, skip)
        shielded = folder.shield(text)
        assert file.encode(shielded, parse_special=True) == folder.encode(
            shielded, parse_special=True
        )
    assert file.eos_token_ids == folder.eos_token_ids
    assert (file.bos_token_id, file.eos_token_id) == (folder.bos_token_id, folder.eos_token_id)
    assert file.chat_templates == folder.chat_templates
    assert found.keys["tokenizer.ggml.pre"] == PRE.get(name[:-2], "default")
    # The format's own library reads all of it.
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert keys.keys() <= fields.keys()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[-3:] == [gguf.TokenType.UNUSED] * 3


@pytest.mark.parametrize("name", ["unigram-4", "unigram-5"])
def test_a_model_that_gguf_has_no_words_for_is_refused(name):
    with pytest.raises(UnsupportedError, match=r"model of kind Unigram.*run the folder itself"):
        gguf_keys(files(name), 300)


def changed(tmp_path, name, **parts):
    """Return the files of a fixture whose tokenizer.json has other parts."""
    state = json.loads(Path(files(name)["tokenizer.json"]).read_text())
    for part, value in parts.items():
        state[part] = state[part] | value if part == "model" else value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    return {**files(name), "tokenizer.json": str(path)}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
AROUND = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [330], "tokens": ["<|endoftext|>"]}
    },
}


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("gpt2-5", {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": r"\w{2}"}}}, r"cuts words by"),
        ("gpt2-5", {"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "a space before"),
        ("gpt2-5", {"pre_tokenizer": {"type": "UnicodeScripts"}}, "UnicodeScripts"),
        ("gpt2-5", {"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ("gpt2-5", {"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        ("gpt2-5", {"post_processor": AROUND}, "other than BOS and EOS"),
        ("llama2-5", {"normalizer": {"type": "NFKC"}}, "normalizer NFKC"),
        ("llama2-5", {"pre_tokenizer": {"type": "Whitespace"}}, "step Whitespace"),
        ("llama2-5", {"model": {"byte_fallback": False}}, "without a token for each byte"),
    ],
)
def test_what_gguf_has_no_words_for_is_refused_by_name(tmp_path, name, parts, words):
    with pytest.raises(UnsupportedError, match=words):
        gguf_keys(changed(tmp_path, name, **parts), 500)


@pytest.mark.parametrize("way", ["one less", "another order"])
def test_merges_that_no_scores_stand_for_are_refused(tmp_path, way):
    merges = json.loads(Path(files("llama2-5")["tokenizer.json"]).read_text())["model"]["merges"]
    twice = {"".join(pair) for pair in merges}
    assert len(twice) < len(merges)  # tokens that two pairs make
    made = ["".join(pair) for pair in merges]
    at = next(i for i, text in enumerate(made) if made.count(text) > 1)
    pair = merges.pop(at)
    if way == "another order":
        merges.append(pair)
    with pytest.raises(UnsupportedError, match="no scores"):
        gguf_keys(changed(tmp_path, "llama2-5", model={"merges": merges}), 500)


def test_what_only_readers_of_the_file_do_otherwise_is_said(monkeypatch):
    monkeypatch.setattr(to_gguf, "CUT_KEYS", ())  # as a file that others wrote
    (note,) = gguf_keys(files("gpt2-5"), 400).notes
    assert "text around '<left>', '<right>', '<both>'" in note
    assert "is cut otherwise by readers of the file" in note


def test_plain_text_that_a_reader_would_cut_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(pre, "name_of", lambda *_, **__: "qwen2")  # a wrong one
    with pytest.raises(UnsupportedError, match="gives other tokens for"):
        gguf_keys(files("llama3-5"), 400)


@pytest.mark.parametrize("pre_name", ["gpt-2", "llama-bpe", "qwen2", "smollm", "falcon", "tekken"])
def test_rules_have_names(pre_name):
    rule = pre.pre_rule(pre_name)
    name = pre.name_of(rule.patterns, ignore_merges=rule.ignore_merges)
    assert name == pre_name
    assert pre.name_of((*rule.patterns, "x"), ignore_merges=rule.ignore_merges) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_sentencepiece_model_is_an_error(tmp_path, data):
    raw = bytearray(tiny.spm_proto()[:4000] + tiny.spm_proto()[-300:])
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw)
    with contextlib.suppress(FormatError):
        assert len(read_model(str(path)).scores) < 1000


def test_a_sentencepiece_model_is_read_as_its_library_does(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiny.spm_proto(True, "<turn>"))
    library, model = tiny.spm(True, "<turn>"), read_model(str(path))
    assert model.is_bpe
    assert model.scores == tuple(map(library.get_score, range(library.get_piece_size())))
    assert model.user_defined == (library.piece_to_id("<turn>"),)
    with pytest.raises(ReadError, match="cannot be read"):
        read_model(str(tmp_path / "nothing"))
