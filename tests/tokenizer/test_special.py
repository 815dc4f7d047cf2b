"""Cutting special tokens out of text, and keeping them from being found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastllm.tokenizer.special import SHIELD, SpecialSplitter

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
    splitter = SpecialSplitter({"<u>": 0, "<v>": 1}, frozenset({0}))
    assert list(splitter.split("<u> \n a<v> b<u>  ")) == [0, "a", 1, " b", 0]
