"""The splitting rules: words of well-known kinds, fixed."""

from __future__ import annotations

import pytest
from tokenizers import Regex, pre_tokenizers

from fastllm.errors import UnsupportedError
from fastllm.tokenizer.pre import PRE_RULES, pre_rule

TEXT = "It's I'LL 12345 camelCase\n\n  x!! 你好ab"
WORDS = {
    "gpt-2": ["It", "'s", " I", "'", "LL", " 12345", " camelCase", "\n\n ", " x", "!!", " 你好ab"],
    "smollm": ["It", "'s", " I", "'", "LL", " ", "1", "2", "3", "4", "5", " camelCase", "\n\n ",
               " x", "!!", " 你好ab"],
    "llama-bpe": ["It", "'s", " I", "'LL", " ", "123", "45", " camelCase", "\n\n", " ", " x", "!!",
                  " 你好ab"],
    "qwen2": ["It", "'s", " I", "'LL", " ", "1", "2", "3", "4", "5", " camelCase", "\n\n", " ",
              " x", "!!", " 你好ab"],
    "tekken": ["It", "'s", " I", "'LL", " ", "1", "2", "3", "4", "5", " camel", "Case", "\n\n",
               " ", " x", "!!", " 你好ab"],
    "gpt-4o": ["It's", " I'LL", " ", "123", "45", " camel", "Case", "\n\n", " ", " x", "!!",
               " 你好ab"],
    "deepseek-v3": ["It", "'s", " I", "'LL", " ", "123", "45", " camelCase", "\n\n", " ", " x",
                    "!!", " ", "你好", "ab"],
    "superbpe": ["It's I'LL ", "12", "345", " camelCase\n\n  x!! 你好ab"],
    "laguna": ["It", "'s", " I", "'LL", " ", "1", "2", "3", "4", "5", " camelCase", "\n\n", " ",
               " x", "!!", " 你好ab"],
}  # fmt: skip


def split(pre: str, text: str) -> list[str]:
    rule = pre_rule(pre)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return [word for word, _ in pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", sorted(WORDS))
def test_words(pre: str) -> None:
    assert split(pre, TEXT) == WORDS[pre]


@pytest.mark.parametrize("pre", sorted(PRE_RULES))
def test_every_rule_compiles_and_keeps_all_text(pre: str) -> None:
    assert "".join(split(pre, TEXT)) == TEXT


def test_digits_in_threes_from_the_right() -> None:
    for pre in ("superbpe", "afmoe", "tiny_aya"):
        assert split(pre, "1234567") == ["1", "234", "567"]


def test_unknown_kind() -> None:
    with pytest.raises(UnsupportedError, match="'kimi-k2' is not built"):
        pre_rule("kimi-k2")
