"""Texts on which two tokenizers that are not the same differ, as good as certainly.

Every kind of character next to every other, runs of them, and what splitting rules and normalizers
are known to treat apart: contractions, digits in groups, spaces before line ends, capitals inside
words, letters of other scripts, marks apart from their letters, bytes of no character of a corpus.
"""

from __future__ import annotations

from collections.abc import Iterator

# Code points where what is seen says little: combined and combining letters, joiners, odd spaces.
_UNITS = (
    "a", "Q", "the", "xY", "É", "ß", "é", "e\u0301", "ж", "Ω", "ת", "ब", "\u0939\u093f", "ไ",
    "\u0e01\u0e47", "你好", "ひカ", "한글", "\u1112\u1161", "\ufb01", "\u01c5", "ª", "0", "7", "42",
    "123", "20245", "\uff11", "²", "½", "٣", "\u2167", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n",
    " \n", "\u00a0", "\u3000", "\u200b", "\u200d", "\x00", "\x7f", ".", ",", "!", "?!", "...", "'",
    "''", "'s", "'LL", "\u2019t", '"', "(", ")]", "{", "<", ">", "</", "<|", "|>", "/", "\\", "//",
    "_", "-", "--", "\u2014", "+", "=", "==", "&&", "`", "```", "~", "^", "$", "€", "%", "#", "@",
    "*", "§", "\u3002", "\uff0c", "…", "¿", "\U0001f999", "\U0001f469\u200d\U0001f467", "\u2581",
    "\u2581\u2581", "\ufffd",
)  # fmt: skip
_LINES = (
    "",
    " leading and trailing ",
    "It's we'RE they've I'm he'd she'll don't O'Neil rock'n'roll 'tis",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x1F 1e-9 v2.0.1 2026-01-31T12:59:59Z",
    "camelCase PascalCase snake_case kebab-case SCREAMING_CASE HTTPServer iPhone15Pro",
    "    indented\n\t\ttabs\n\n\n   \n  trailing   \n",
    "def f(x: int) -> list[str]:\n    return [g(i, 'a')['b'] for i in range(10)]  # ok?!\n",
    "<p class=\"x\">&nbsp;</p>\n<!-- no -->\n| a | b |\n|---|---|\n",
    "Größe naïve café Zürich œuvre İstanbul ŁÓDŹ Ελληνικά Привет мир",
    "これは日本語です。漢字とカタカナ、句読点！ 中文句子，没有空格。 한국어 문장입니다.",
    "नमस्ते दुनिया สวัสดีชาวโลก مرحبا بالعالم שלום עולם ქართული ភាសាខ្មែរ",
    "x²+y²=z² ∑∫√∞ ≤≠≥ →⇒ ½¼ №5 50€ £20 ¥ 100% #1 @me",
    "\u00c5\u212b A\u030a ﬀ ｆｕｌｌ　ｗｉｄｔｈ \u1e9b\u0323 \ud55c\u1100\u1161",
    "🦙🚀👍🏽🏳️‍🌈 :-) ¯\\_(ツ)_/¯",
)  # fmt: skip


def probe_texts() -> Iterator[str]:
    """Yield texts of some lines each, a few tens of kilobytes together."""
    yield from _LINES
    for unit in _UNITS:
        yield unit
        yield "".join(f"{unit}{other} {other}{unit}" for other in _UNITS)
