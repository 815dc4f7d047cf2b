"""A folder's tokenizer as the keys of a GGUF file.

The format keeps a vocabulary and a few words on how to use it; a folder keeps a program, which
`program` reads for what these words can say. Then the keys are read back, and both tokenizers must
give the same tokens for `probe.probe_texts`.

What readers of the format cannot know, but we can, has keys of ours under ``fastllm.tokenizer.``:

=================================== ============================================================
``normalizer``                      "nfc": texts are composed first (Qwen)
``metaspace``                       "always" or "first": a space is put before a text that begins
                                    with none, after every special token or at the start only;
                                    "start": there whatever it begins with
``lstrip`` ``rstrip``               ids of special tokens that swallow white space around them
``single_word``                     ids of those that are not found inside words
=================================== ============================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import fspath
from typing import Any

import numpy as np

from fastllm.errors import UnsupportedError
from fastllm.tokenizer import hf_sentencepiece, program, vocabulary
from fastllm.tokenizer.gguf_vocab import CUT_KEYS, KEY, OWN_KEY, load_gguf
from fastllm.tokenizer.hf_config import Files, TokenizerConfig
from fastllm.tokenizer.hf_vocab import from_library, open_library
from fastllm.tokenizer.loaded import LoadedVocabulary
from fastllm.tokenizer.probe import probe_texts
from fastllm.tokenizer.sentencepiece_model import read_model
from fastllm.tokenizer.tokenizer import Tokenizer
from fastllm.tokenizer.vocabulary import SPACE

# The ids that GGUF has keys for, by transformers' names of the tokens.
_NAMED = {
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


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
        if loaded.strips_space and not config.is_legacy():
            keys[f"{OWN_KEY}metaspace"] = "start"
    else:
        loaded = from_library(library, config, overruled="tokenizer.json" not in files)
        state = json.loads(library.to_str())
        if loaded.vocabulary.byte_level:
            keys = program.byte_level(state)
        else:
            keys = program.sentencepiece(state, loaded.vocabulary)
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
        raise program.unsaid(
            f"{', '.join(map(repr, around))} around a text, other than BOS and EOS"
        )
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
