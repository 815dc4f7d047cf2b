"""Folders exactly as transformers saved them: the same ids and the same text, flags and all."""

from __future__ import annotations

import pytest

from fastllm.tokenizer import StreamDetokenizer
from tests.tokenizer.fixtures import NAMES, expected, tokenizer

# Where untrusted text makes control tokens there and none here: in Gemma's files of transformers 5
# they are named as special and are ordinary added tokens all the same; Unigram finds them in its
# own vocabulary. And slow tokenizers want blanks around what is a word of its own, where fast ones
# and transformers 5 are content with signs.
OTHERWISE = {
    "gemma-5": ("<start_of_turn>", "<end_of_turn>"),
    "slow-flags-4": ("word", "<mask!>"),
    "unigram-4": ("<unk>", "</s>"),
    "unigram-5": ("<unk>", "</s>"),
}


def differences(name: str, column: str, found: list) -> list:
    rows = expected(name)
    return [
        (text, ours, theirs)
        for text, ours, theirs in zip(rows["texts"], found, rows[column], strict=True)
        if ours != theirs and not any(mark in text for mark in OTHERWISE.get(name, ()))
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("column", "trusted"), [("ids", True), ("plain_ids", False)])
def test_ids(name, column, trusted):
    if column not in expected(name):
        pytest.skip("slow tokenizers cannot take control texts for text")
    ours, texts = tokenizer(name), expected(name)["texts"]
    found = [ours.encode(text, add_special_tokens=False, parse_special=trusted) for text in texts]
    assert not differences(name, column, found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["ids", "plain_ids"])
def test_text(name, column):
    if column not in expected(name):
        pytest.skip("slow tokenizers cannot take control texts for text")
    ours, rows = tokenizer(name), expected(name)[column]
    for suffix, skip in (("text", False), ("shown", True)):
        found = [ours.decode(ids, skip_special_tokens=skip) for ids in rows]
        assert not differences(name, f"{column}_{suffix}", found)
    for ids in rows:
        stream = StreamDetokenizer(ours)
        assert "".join(map(stream.put, ids)) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_around_a_text(name):
    assert tokenizer(name).encode("a") == expected(name)["around"]
