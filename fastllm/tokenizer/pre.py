r"""How a byte-level BPE vocabulary cuts text into words, for every ``tokenizer.ggml.pre`` built.

A merge never crosses a cut, so a wrong rule gives wrong tokens with no other sign of it; a kind
that is not in `PRE_RULES` is therefore refused by name. The expressions are those of the models'
own ``tokenizer.json`` files (Oniguruma syntax, which the ``tokenizers`` library runs); where a
model's file is a pipeline of several rules, they are applied in order, each to the pieces that the
one before it left. Matches become pieces, and so does the text between two matches.

References
----------
llama.cpp ``src/llama-vocab.cpp`` names the kinds; its vectors test the common ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastllm.errors import UnsupportedError


@dataclass(frozen=True)
class PreRule:
    """The splitting rule of one kind of vocabulary.

    Attributes
    ----------
    patterns : tuple of str
        Oniguruma expressions, applied in order; every match is isolated.
    ignore_merges : bool
        A word that is a token as it stands is taken whole, before any merge.
    add_bos : bool
        Whether a BOS leads the text when the file has no ``add_bos_token`` key.
    byte_level : bool
        False where tokens are spelled in UTF-8 with U+2581 for a space and ``<0xHH>`` for bytes.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_NEWLINES = r"\s*[\r\n]+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ASCII_SIGN_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# A letter run that may start a new word at a capital, as o200k and tekken cut "camelCase".
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
# Digits in threes, counted from the right end of the number.
_THREES_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_CL100K = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_NEWLINES}|{_SPACES}"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SIGNS}|{_NEWLINES}|{_SPACES}"
_QWEN35 = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_NEWLINES}|{_SPACES}"
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SIGNS_SLASH}|{_NEWLINES}|{_SPACES}"
_O200K = (
    rf"{_CASED[0]}{_SUFFIX}?|{_CASED[1]}{_SUFFIX}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_NEWLINES}|{_SPACES}"
)
_DEEPSEEK_MAIN = (
    rf"{_ASCII_SIGN_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_NEWLINES}|{_SPACES}"
)
_KANJI_KANA = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# The letters of scripts with upper and lower case, as deepseek-llm's own file lists them.
_DEEPSEEK_CASED_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    r"\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    r"\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    r"\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    r"\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    r"\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    r"\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    r"\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    r"\uff3a\uff41-\uff5a\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-"
    r"\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}"
)
_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# Han with both its extensions of the basic plane, kana, Thai, Lao, Khmer, Burmese, Hangul.
_ASIAN_SCRIPTS = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    r"\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    r"\u1100-\u11ff]+"
)

_GPT2_RULE = PreRule((_GPT2,))
_DIGITS_GPT2_RULE = PreRule((r"\p{N}", _GPT2))
_QWEN2_RULE = PreRule((_QWEN2,))
_CL100K_RULE = PreRule((_CL100K,))
_LLAMA3_RULE = PreRule((_CL100K,), ignore_merges=True, add_bos=True)
_O200K_RULE = PreRule((_O200K,))
_BAILING_RULE = PreRule(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        rf"|\s*[\r\n]|{_SPACES}",
    )
)
_DEEPSEEK3_RULE = PreRule((r"\p{N}{1,3}", _KANJI_KANA, _DEEPSEEK_MAIN))
_TINY_AYA_RULE = PreRule((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K))
# Spaces are spelled U+2581 and words are not cut at all, except at newlines.
_GEMMA4_RULE = PreRule((r"[^\n]+|\n+",), add_bos=True, byte_level=False)

DEFAULT_RULE = PreRule(
    (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
)

PRE_RULES: dict[str, PreRule] = {
    "default": DEFAULT_RULE,
    **dict.fromkeys(
        (
            "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
            "lfm2", "jina-v5-nano",
        ),
        _LLAMA3_RULE,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _CL100K_RULE),
    **dict.fromkeys(("glm4", "glm5"), PreRule((_CL100K,), ignore_merges=True)),
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat",
            "a.x-4.0", "mellum", "modern-bert", "exaone4", "jina-es", "jina-de", "jina-v2-es",
            "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe",
        ),
        _GPT2_RULE,
    ),
    **dict.fromkeys(
        (
            "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
            "mellum2",
        ),
        _DIGITS_GPT2_RULE,
    ),
    **dict.fromkeys(
        (
            "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open",
            "megrez", "grok-2",
        ),
        _QWEN2_RULE,
    ),
    "qwen35": PreRule((_QWEN35,)),
    "ufakzeka": PreRule((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_NEWLINES}|{_SPACES}",)),
    "laguna": PreRule((r"[^\n]+|\n+", _QWEN2)),
    "minicpm5": PreRule(
        (
            r"\p{N}{1,3}",
            rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_SIGNS}|{_NEWLINES}|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    "seed-coder": PreRule(
        (rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_NEWLINES}|{_SPACES}",)
    ),
    "exaone-moe": PreRule(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",
        )
    ),
    "jais-2": PreRule(
        (
            rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_NEWLINES}"
            r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)"
            r"|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "falcon": PreRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "deepseek-llm": PreRule(
        (
            r"[\r\n]", rf"\s?[{_DEEPSEEK_CASED_LETTERS}]+",
            r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$", _CJK, r"\p{N}+",
        )
    ),
    "deepseek-coder": PreRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"), _DEEPSEEK3_RULE),
    "spark2_5": PreRule(
        (
            r"\p{N}{1,3}", _KANJI_KANA,
            rf"{_ASCII_SIGN_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
            rf"| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}",
            r"\p{N}",
        )
    ),
    "afmoe": PreRule((_THREES_FROM_RIGHT, _ASIAN_SCRIPTS, _DEEPSEEK_MAIN)),
    "superbpe": PreRule((r"\p{N}+", _THREES_FROM_RIGHT)),
    "youtu": PreRule(
        (
            r"[\uac00-\ud7a3\u3131-\u318e]+"
            r"|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
            rf"|[\u3105-\u312f]+|{_KANJI_KANA}",
            rf"{_CASED[0]}{_SUFFIX}?|{_CASED[1]}{_SUFFIX}?|\p{{N}}|{_SIGNS_SLASH}|{_NEWLINES}"
            rf"|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreRule((_BLOOM,))),
    "viking": PreRule((_BLOOM, r"\p{N}")),
    "tekken": PreRule((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _O200K_RULE),
    "granite-embed-multi-97m": PreRule((_O200K,), ignore_merges=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA_RULE),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING_RULE),
    "chameleon": PreRule(
        (
            r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )",
            r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", _GPT2,
        ),
        add_bos=True,
    ),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA4_RULE),
    "sarvam-moe": PreRule((r"[^\n]+|\n+",), byte_level=False),
}  # fmt: skip


# Of the names that stand for one rule, the one to write.
_USUAL = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "dbrx",
    "glm4",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
)


# Falcon's own file cuts off the space before a number, too, which no token of its has.
_FALCON_PIPELINE = (*PRE_RULES["falcon"].patterns[:2], r"\p{N}+", PRE_RULES["falcon"].patterns[2])


def name_of(patterns: tuple[str, ...], *, ignore_merges: bool) -> str | None:
    """Return a ``tokenizer.ggml.pre`` value whose byte-level rule is this one, or None."""
    if patterns == _FALCON_PIPELINE:
        return "falcon"
    for name in (*_USUAL, *PRE_RULES):
        rule = PRE_RULES[name]
        if (rule.patterns, rule.ignore_merges) == (patterns, ignore_merges) and rule.byte_level:
            return name
    return None


def pre_rule(name: str) -> PreRule:
    """Return the rule of a ``tokenizer.ggml.pre`` value.

    Raises
    ------
    UnsupportedError
        The kind is not built; guessing one would silently give wrong tokens.
    """
    rule = PRE_RULES.get(name)
    if rule is None:
        raise UnsupportedError(
            f"tokenizer.ggml.pre = {name[:80]!r} is not built: its way to split words is unknown "
            "and a guess would give wrong tokens; use the model's Hugging Face folder instead"
        )
    return rule
