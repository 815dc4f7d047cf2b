"""A stream of ids gives the text of all of them, and never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import RequestError
from fastllm.tokenizer import StreamDetokenizer, Tokenizer
from tests.tokenizer import tiny

TOKENIZERS = {
    "byte-level": Tokenizer.from_gguf(tiny.gpt2_metadata()),
    "byte fallback": Tokenizer.from_gguf(tiny.spm_metadata()),
    "no space prefix": Tokenizer.from_gguf(tiny.spm_metadata(add_dummy_prefix=False)),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 490), max_size=30), skip=st.booleans())
def test_pieces_join_to_the_whole(name: str, ids: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    stream = StreamDetokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [stream.put(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=20))
def test_text_comes_out_in_whole_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    stream = StreamDetokenizer(tokenizer)
    shown = ""
    for i in tokenizer.encode(text):
        shown += stream.put(i)
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_half_a_character_waits_and_is_replaced_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    first, second = (tokenizer.piece_to_id(f"<0x{b:02X}>") for b in "é".encode())
    assert first is not None
    assert second is not None
    stream = StreamDetokenizer(tokenizer)
    assert stream.put(first) == ""
    assert stream.put(second) == "é"
    assert stream.put(first) == ""
    assert stream.finish() == "\ufffd"


def test_leading_space_of_a_continued_text() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = tokenizer.encode("sky", add_special_tokens=False)
    whole, rest = StreamDetokenizer(tokenizer), StreamDetokenizer(tokenizer, continues=True)
    assert "".join(map(whole.put, ids)) == "sky"
    assert "".join(map(rest.put, ids)) == " sky"


def test_negative_id() -> None:
    with pytest.raises(RequestError, match="from 0 to"):
        StreamDetokenizer(TOKENIZERS["byte-level"]).put(-3)
