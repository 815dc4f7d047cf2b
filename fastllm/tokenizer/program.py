"""What a ``tokenizer.json`` does, in the words that GGUF has for it.

Byte-level BPE, whose way to cut words must be one of those that have a name (`pre.name_of`), and
BPE in sentencepiece's spelling, whose merges must be those of scores. Everything else is refused
by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import UnsupportedError
from fastllm.tokenizer import pre, vocabulary
from fastllm.tokenizer.gguf_vocab import KEY, OWN_KEY
from fastllm.tokenizer.vocabulary import SPACE, Vocabulary

# What cuts runs of signs: Unicode's punctuation, and ASCII's signs that Unicode calls symbols.
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


def byte_level(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a byte-level BPE tokenizer.

    Parameters
    ----------
    state : mapping
        The contents of tokenizer.json.

    Raises
    ------
    UnsupportedError
    """
    model = _bpe(state)
    patterns = tuple(_cuts(_steps(state.get("pre_tokenizer"), "pretokenizers")))
    name = pre.name_of(patterns, ignore_merges=bool(model.get("ignore_merges")))
    if name is None:
        shown = ", ".join(repr(pattern[:60]) for pattern in patterns) or "nothing"
        raise UnsupportedError(
            f"tokenizer.json cuts words by {shown}, which has no name among the values of "
            "tokenizer.ggml.pre; run the folder itself"
        )
    keys: dict[str, Any] = {f"{KEY}model": "gpt2", f"{KEY}pre": name}
    keys[f"{KEY}merges"] = _merge_lines(model)
    for step in _steps(state.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise unsaid(f"a normalizer {step['type']}")
        keys[f"{OWN_KEY}normalizer"] = "nfc"
    return keys


def _bpe(state: Mapping[str, Any]) -> Mapping[str, Any]:
    model: Mapping[str, Any] = state["model"]
    if model.get("type", "BPE") != "BPE":
        raise unsaid(f"a model of kind {model['type']}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise unsaid(f"{key} {model[key]!r}")
    return model


def unsaid(what: str) -> UnsupportedError:
    """Return the error for something that a file says and the format cannot."""
    return UnsupportedError(
        f"tokenizer.json has {what}, for which GGUF has no words; run the folder itself"
    )


def _steps(state: Any, several: str) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, sequences opened."""
    if state is None:
        return
    if state["type"] == "Sequence":
        for step in state[several]:
            yield from _steps(step, several)
    else:
        yield state


def _cuts(steps: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the expressions whose matches are isolated, as `pre.PreRule` has them."""
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise unsaid("a ByteLevel step that puts a space before the text")
            if step.get("use_regex", True):
                yield pre.pre_rule("gpt-2").patterns[0]
        elif kind == "Digits":
            yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            yield _PUNCTUATION
        elif kind == "Split" and "Regex" in step["pattern"]:
            # "Removed, inverted" keeps matches alone; such expressions match every text whole.
            way = (step["behavior"], bool(step["invert"]))
            if way not in (("Isolated", False), ("Removed", True)):
                raise unsaid(f"a Split step of behavior {step['behavior']}")
            yield step["pattern"]["Regex"]
        else:
            raise unsaid(f"a pre-tokenizer step {kind}")


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges; older files have them as lines."""
    found = []
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        found.append((left, right))
    return found


def _merge_lines(model: Mapping[str, Any]) -> list[str]:
    pairs = _pairs(model)
    if any(" " in left or " " in right for left, right in pairs):
        raise unsaid("merges of texts with spaces")
    return [f"{left} {right}" for left, right in pairs]


# ---------------------------------------------------------------------- sentencepiece's spelling
def sentencepiece(state: Mapping[str, Any], found: Vocabulary) -> dict[str, Any]:
    """Return the keys of a BPE tokenizer in sentencepiece's spelling.

    Parameters
    ----------
    state : mapping
        The contents of tokenizer.json.
    found : Vocabulary
        Its tokens; kinds and texts become what the format wants.

    Raises
    ------
    UnsupportedError
    """
    model = _bpe(state)
    if not model.get("byte_fallback") or found.kinds.count(vocabulary.BYTE) != 256:
        raise unsaid("a vocabulary of whole characters without a token for each byte")
    unknown = found.ids.get(model.get("unk_token") or "")
    if unknown is not None:
        found.kinds[unknown] = vocabulary.UNKNOWN
    scores = _scores(_pairs(model), found)
    keys: dict[str, Any] = {f"{KEY}model": "llama", f"{KEY}pre": "default", f"{KEY}scores": scores}
    adds_space = False
    for step in _steps(state.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == SPACE:
            adds_space = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "}:
            raise unsaid(f"a normalizer {step['type']}")
    for step in _steps(state.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Split" and step["pattern"] == {"String": " "}:
            continue  # in Gemma's file, whose normalizer leaves none
        if step["type"] != "Metaspace" or step.get("replacement") != SPACE:
            raise unsaid(f"a pre-tokenizer step {step['type']}")
        scheme = step.get("prepend_scheme", "always")
        if scheme != "never":
            adds_space = True
            keys[f"{OWN_KEY}metaspace"] = scheme
        ordinary = found.of_kind(vocabulary.NORMAL)
        if step.get("split", True) and any(SPACE in text[1:] for text in ordinary):
            raise unsaid("a Metaspace step that cuts words, and tokens across its cuts")
    keys[f"{KEY}add_space_prefix"] = adds_space
    for added in state["added_tokens"]:
        # What is looked for in the normalized text: in the text as it came it has spaces.
        if added["normalized"] and not added["special"]:
            found.tokens[added["id"]] = added["content"].replace(SPACE, " ")
    return keys


def _scores(pairs: Sequence[tuple[str, str]], found: Vocabulary) -> NDArray[np.float32]:
    """Return scores that make sentencepiece merge as these pairs do: the earlier, the higher.

    Raises
    ------
    UnsupportedError
        There are none: it merges whatever two tokens make a third, all pairs of one token at once.
    """
    first: dict[str, int] = {}
    last = ""
    blocks = 0
    for rank, (left, right) in enumerate(pairs):
        text = left + right
        first.setdefault(text, rank)
        blocks += text != last
        last = text
    ordinary = found.of_kind(vocabulary.NORMAL)
    known = set(pairs)
    if blocks != len(first) or any(
        (text[:at], text[at:]) not in known
        for text in ordinary
        for at in range(1, len(text))
        if text[:at] in ordinary and text[at:] in ordinary
    ):
        raise unsaid("merges that no scores of tokens stand for")
    scores = np.zeros(len(found.tokens), np.float32)
    for text, rank in first.items():
        scores[found.ids[text]] = -rank
    return scores
