"""Cutting special tokens out of text, and keeping them from being found."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models
from tokenizers.pre_tokenizers import Split

from fastllm.tokenizer.special import SHIELD, Cuts, SpecialSplitter, is_word

TOKENS = {"<s>": 0, "</s>": 1, "<<s>": 2, "ab": 3, "abab": 4, "[x]": 5, " ": 6}
TEXT = st.text(alphabet="<s>/ab[x] ", max_size=30) | st.text(max_size=10)


def naive_split(text: str) -> list[str | int]:
    out: list[str | int] = []
    rest = ""
    while text:
        found = max((t for t in TOKENS if text.startswith(t)), key=len, default="")
        if found:
            out += [rest, TOKENS[found]] if rest else [TOKENS[found]]
            rest = ""
        else:
            rest += text[0]
        text = text[len(found) or 1 :]
    return [*out, rest] if rest else out


@given(TEXT)
def test_split_finds_the_longest_from_the_left(text: str) -> None:
    assert list(SpecialSplitter(TOKENS).split(text)) == naive_split(text)


@given(TEXT)
def test_shield_hides_all_and_changes_nothing_else(text: str) -> None:
    splitter = SpecialSplitter({t: i for t, i in TOKENS.items() if len(t) > 1})
    shielded = splitter.shield(text)
    assert shielded.replace(SHIELD, "") == text.replace(SHIELD, "")
    assert not any(isinstance(part, int) for part in splitter.split(shielded))


def test_shield_leaves_harmless_text_alone() -> None:
    assert SpecialSplitter(TOKENS).shield("x < y") != "x < y"  # a space is a token here
    assert SpecialSplitter({"<s>": 0}).shield("x < y <s") == "x < y <s"


def test_no_tokens() -> None:
    assert list(SpecialSplitter({}).split("abc")) == ["abc"]
    assert list(SpecialSplitter({}).split("")) == []


def test_spaces_after_are_eaten() -> None:
    splitter = SpecialSplitter({"<u>": 0, "<v>": 1}, Cuts(rstrip=frozenset({0})))
    assert list(splitter.split("<u> \n a<v> b<u>  ")) == [0, "a", 1, " b", 0]


FLAGGED = ("<u>", "<uu>", "u", "<u> <u>", "é", "a_")
PIECES = st.sampled_from([*"u< >aé_-.\n\u3000\u0301²ⓐ", "<u>", "<uu>", "<u> <u>", "  "])


@given(
    st.lists(st.tuples(*[st.booleans()] * 3), min_size=len(FLAGGED), max_size=len(FLAGGED)),
    st.lists(PIECES, max_size=9).map("".join),
)
def test_flags_cut_as_the_library_cuts(flags, text: str) -> None:
    """Characters are words there, so that its ids say what lay between the tokens."""
    library = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    library.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokens = {mark: i + 1 for i, mark in enumerate(FLAGGED)}
    library.add_tokens(
        [
            AddedToken(mark, lstrip=left, rstrip=right, single_word=word, normalized=False)
            for mark, (left, right, word) in zip(FLAGGED, flags, strict=True)
        ]
    )
    expected = library.encode(text).ids
    cuts = Cuts(*(frozenset(i + 1 for i, one in enumerate(flags) if one[k]) for k in range(3)))
    found: list[int] = []
    for part in SpecialSplitter(tokens, cuts).split(text):
        found += [part] if isinstance(part, int) else [0] * len(part)
    assert found == expected


def test_characters_of_words_are_those_of_the_library() -> None:
    library = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    library.add_tokens([AddedToken("<u>", single_word=True, normalized=False)])
    assigned = [chr(i) for i in range(0x3200) if unicodedata.category(chr(i)) != "Cn"]
    for char in assigned:
        assert is_word(char) == (1 not in library.encode(f"{char}<u>").ids), hex(ord(char))
