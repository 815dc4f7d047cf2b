"""A folder's tokenizer as the keys of a GGUF file.

The format keeps a vocabulary and a few words on how to use it; a folder keeps a program. So the
program is read for what the words can say: byte-level BPE, whose way to cut words must be one of
those that have a name (`pre.name_of`), and BPE in sentencepiece's spelling, whose merges must be
those of scores. Everything else is refused by name. Then the keys are read back, and both
tokenizers must give the same tokens for `probe.probe_texts`.

What readers of the format cannot know, but we can, has keys of ours under ``fastllm.tokenizer.``:

=================================== ============================================================
``normalizer``                      "nfc": texts are composed first (Qwen)
``metaspace``                       "always" or "first": a space is put before a text that begins
                                    with none, after every special token or at the start only
``lstrip`` ``rstrip``               ids of special tokens that swallow white space around them
``single_word``                     ids of those that are not found inside words
=================================== ============================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import UnsupportedError
from fastllm.tokenizer import hf_sentencepiece, pre, vocabulary
from fastllm.tokenizer.gguf_vocab import CUT_KEYS, KEY, OWN_KEY, load_gguf
from fastllm.tokenizer.hf_config import Files, TokenizerConfig
from fastllm.tokenizer.hf_vocab import from_library, open_library
from fastllm.tokenizer.loaded import LoadedVocabulary
from fastllm.tokenizer.probe import probe_texts
from fastllm.tokenizer.sentencepiece_model import read_model
from fastllm.tokenizer.tokenizer import Tokenizer
from fastllm.tokenizer.vocabulary import SPACE, Vocabulary

# The ids that GGUF has keys for, by transformers' names of the tokens.
_NAMED = {
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
# What cuts runs of signs: Unicode's punctuation, and ASCII's signs that Unicode calls symbols.
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class GGUFTokenizer:
    """Keys of a GGUF file, and what its readers will do otherwise than the folder's tokenizer."""

    keys: dict[str, Any]
    notes: tuple[str, ...]


def gguf_keys(
    files: Files,
    vocab_size: int,
    model_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> GGUFTokenizer:
    """Return the ``tokenizer.*`` keys for the tokenizer that a folder's files describe.

    Parameters
    ----------
    files, model_config, generation_config
        As in `hf_vocab.load_hf`.
    vocab_size : int
        Rows of the embedding: rows without a token get one that is never used, tokens without a
        row are left out.

    Raises
    ------
    ModelNotFoundError
        The folder has no tokenizer.
    UnsupportedError
        GGUF, or our reader of it, has no words for this tokenizer; named.
    FormatError, ReadError
    """
    config = TokenizerConfig(files, model_config, generation_config)
    library = open_library(files, config)
    if library is None:
        loaded = hf_sentencepiece.load(files["tokenizer.model"], config)
        keys = _sentencepiece_model(fspath(files["tokenizer.model"]), loaded)
    else:
        loaded = from_library(library, config, overruled="tokenizer.json" not in files)
        state = json.loads(library.to_str())
        describe = _byte_level if loaded.vocabulary.byte_level else _sentencepiece
        keys = describe(state, loaded)
    if f"{KEY}scores" in keys:
        scores = np.zeros(vocab_size, np.float32)
        known = keys[f"{KEY}scores"][:vocab_size]
        scores[: len(known)] = known
        keys[f"{KEY}scores"] = scores
    keys |= _tokens(loaded, vocab_size)
    keys |= _ids(loaded, config, vocab_size)
    keys |= _around(loaded, keys)
    keys |= _templates(loaded)
    return GGUFTokenizer(keys, _compare(Tokenizer(loaded), keys, vocab_size))


# ---------------------------------------------------------------------- byte-level BPE
def _byte_level(state: Mapping[str, Any], loaded: LoadedVocabulary) -> dict[str, Any]:  # noqa: ARG001
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
            raise _unsaid(f"a normalizer {step['type']}")
        keys[f"{OWN_KEY}normalizer"] = "nfc"
    return keys


def _bpe(state: Mapping[str, Any]) -> Mapping[str, Any]:
    model: Mapping[str, Any] = state["model"]
    if model.get("type", "BPE") != "BPE":
        raise _unsaid(f"a model of kind {model['type']}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _unsaid(f"{key} {model[key]!r}")
    return model


def _unsaid(what: str) -> UnsupportedError:
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
                raise _unsaid("a ByteLevel step that puts a space before the text")
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
                raise _unsaid(f"a Split step of behavior {step['behavior']}")
            yield step["pattern"]["Regex"]
        else:
            raise _unsaid(f"a pre-tokenizer step {kind}")


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
        raise _unsaid("merges of texts with spaces")
    return [f"{left} {right}" for left, right in pairs]


# ---------------------------------------------------------------------- sentencepiece's spelling
def _sentencepiece(state: Mapping[str, Any], loaded: LoadedVocabulary) -> dict[str, Any]:
    model, found = _bpe(state), loaded.vocabulary
    if not model.get("byte_fallback") or found.kinds.count(vocabulary.BYTE) != 256:
        raise _unsaid("a vocabulary of whole characters without a token for each byte")
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
            raise _unsaid(f"a normalizer {step['type']}")
    for step in _steps(state.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Split" and step["pattern"] == {"String": " "}:
            continue  # in Gemma's file, whose normalizer leaves none
        if step["type"] != "Metaspace" or step.get("replacement") != SPACE:
            raise _unsaid(f"a pre-tokenizer step {step['type']}")
        scheme = step.get("prepend_scheme", "always")
        if scheme != "never":
            adds_space = True
            keys[f"{OWN_KEY}metaspace"] = scheme
        ordinary = found.of_kind(vocabulary.NORMAL)
        if step.get("split", True) and any(SPACE in text[1:] for text in ordinary):
            raise _unsaid("a Metaspace step that cuts words, and tokens across its cuts")
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
        raise _unsaid("merges that no scores of tokens stand for")
    scores = np.zeros(len(found.tokens), np.float32)
    for text, rank in first.items():
        scores[found.ids[text]] = -rank
    return scores


def _sentencepiece_model(path: str, loaded: LoadedVocabulary) -> dict[str, Any]:
    model = read_model(path)
    if not model.is_bpe:
        raise UnsupportedError(
            f"{path}: not a BPE model (Unigram, words or characters), which fastllm reads from "
            "folders only; run the folder itself"
        )
    found = loaded.vocabulary
    scores = np.zeros(len(found.tokens), np.float32)
    scores[: len(model.scores)] = model.scores
    for i in model.user_defined:  # the library finds them in any text
        if found.kinds[i] == vocabulary.NORMAL:
            found.kinds[i] = vocabulary.USER_DEFINED
            found.tokens[i] = found.tokens[i].replace(SPACE, " ")
    return {
        f"{KEY}model": "llama",
        f"{KEY}pre": "default",
        f"{KEY}scores": scores,
        f"{KEY}add_space_prefix": loaded.strips_space,
    }


# ---------------------------------------------------------------------- every kind
def _tokens(loaded: LoadedVocabulary, vocab_size: int) -> dict[str, Any]:
    """Return one token for each row of the embedding, and how some want to be cut out."""
    found = loaded.vocabulary
    missing = max(0, vocab_size - len(found.tokens))
    tokens = [*found.tokens, *[""] * missing][:vocab_size]
    kinds = [*found.kinds, *[vocabulary.UNUSED] * missing][:vocab_size]
    taken = set(tokens)
    for i, text in enumerate(tokens):
        if not text:  # a row, or an id between, that names nothing
            spare = f"[PAD{i}]"
            while spare in taken:
                spare += "_"
            tokens[i] = spare
    keys: dict[str, Any] = {f"{KEY}tokens": tokens, f"{KEY}token_type": np.array(kinds, np.int32)}
    for name in CUT_KEYS:
        own = sorted(i for i in getattr(loaded.cuts, name) if i < vocab_size)
        if own:
            keys[f"{OWN_KEY}{name}"] = own
    return keys


def _ids(loaded: LoadedVocabulary, config: TokenizerConfig, vocab_size: int) -> dict[str, Any]:
    """Return which tokens are what; ends of a turn that a reader does not know by their text."""
    found = loaded.vocabulary
    ids = {"bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id}
    control = found.of_kind(vocabulary.CONTROL)
    known = {control[text] for text in vocabulary.END_TEXTS if text in control}
    ends = [i for i in loaded.eos_token_ids if i not in known and i != loaded.eos_token_id]
    if loaded.eos_token_id is None and loaded.eos_token_ids:
        ids["eos_token_id"] = loaded.eos_token_ids[0]
    ids |= dict(zip(("eot_token_id", "eom_token_id"), ends, strict=False))
    ids |= {key: config.special_id(name, found.ids) for name, key in _NAMED.items()}
    return {f"{KEY}{key}": i for key, i in ids.items() if i is not None and i < vocab_size}


def _around(loaded: LoadedVocabulary, keys: Mapping[str, Any]) -> dict[str, Any]:
    bos, eos = (keys.get(f"{KEY}{name}_token_id") for name in ("bos", "eos"))
    if loaded.prefix_ids not in ((), (bos,)) or loaded.suffix_ids not in ((), (eos,)):
        around = [loaded.vocabulary.tokens[i] for i in (*loaded.prefix_ids, *loaded.suffix_ids)]
        raise _unsaid(f"{', '.join(map(repr, around))} around a text, other than BOS and EOS")
    return {
        f"{KEY}add_bos_token": bool(loaded.prefix_ids),
        f"{KEY}add_eos_token": bool(loaded.suffix_ids),
    }


def _templates(loaded: LoadedVocabulary) -> dict[str, Any]:
    templates = dict(loaded.chat_templates)
    keys: dict[str, Any] = {}
    if "default" in templates:
        keys["tokenizer.chat_template"] = templates.pop("default")
    if templates:
        keys["tokenizer.chat_templates"] = list(templates)
    return keys | {f"tokenizer.chat_template.{name}": text for name, text in templates.items()}


def _compare(folder: Tokenizer, keys: Mapping[str, Any], vocab_size: int) -> tuple[str, ...]:
    """Compare the folder's tokenizer with what a reader of the keys builds.

    Returns
    -------
    tuple of str
        What differs around special tokens only.

    Raises
    ------
    UnsupportedError
        Plain text gives other tokens, or other text.
    """
    file = Tokenizer(load_gguf(keys))
    for text in probe_texts():
        ids = folder.encode(text)
        if file.encode(text) != ids or file.decode(ids) != folder.decode(ids):
            raise UnsupportedError(
                f"the tokenizer gives other tokens for {text[:40]!r} as a GGUF file than in its "
                "folder; run the folder itself"
            )
    notes = []
    if set(file.eos_token_ids) != {i for i in folder.eos_token_ids if i < vocab_size}:
        left = sorted({*folder.eos_token_ids} - {*file.eos_token_ids})
        notes.append(
            "tokens that end an answer in the folder and not in the file: "
            + ", ".join(folder.id_to_piece(i) for i in left)
        )
    texts = [text for text, i in folder.marked_tokens().items() if i < vocab_size]
    around = [f"a{text}b {text}  c.{text}\n{text}" for text in texts]
    if not _alike(folder, file, "".join(around)):
        other = [text for text, one in zip(texts, around, strict=True)
                 if not _alike(folder, file, one)] or texts  # fmt: skip
        notes.append(
            f"text around {', '.join(map(repr, other[:5]))}{', ...' if len(other) > 5 else ''} is "
            "cut otherwise by readers of the file"
        )
    return tuple(notes)


def _alike(folder: Tokenizer, file: Tokenizer, text: str) -> bool:
    return all(
        folder.encode(text, parse_special=trusted) == file.encode(text, parse_special=trusted)
        for trusted in (False, True)
    )
