"""The tokenizer files of a Hugging Face folder.

``tokenizer.json`` is run by ``tokenizers`` as it is, ``tokenizer.model`` by ``sentencepiece``, and
``vocab.json`` with ``merges.txt`` is GPT-2's byte-level BPE (OPT ships no other file).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from fastllm.errors import FormatError, ModelNotFoundError, UnsupportedError
from fastllm.formats.json_files import read_object
from fastllm.tokenizer import hf_sentencepiece, vocabulary
from fastllm.tokenizer.hf_config import Files, TokenizerConfig, read_text
from fastllm.tokenizer.library_encoder import LibraryEncoder
from fastllm.tokenizer.loaded import LoadedVocabulary, finish_hf, id_table
from fastllm.tokenizer.pre import pre_rule
from fastllm.tokenizer.special import Cuts

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)


def load_hf(
    files: Files,
    model_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> LoadedVocabulary:
    """Build the tokenizer that a folder's files describe.

    Parameters
    ----------
    files : mapping of str to path
        File name to path.
    model_config, generation_config : mapping, optional
        Contents of ``config.json`` and ``generation_config.json`` where they are not in `files`.

    Raises
    ------
    ModelNotFoundError
        None of the files that hold a vocabulary is there.
    UnsupportedError, FormatError, ReadError
    """
    config = TokenizerConfig(files, model_config, generation_config)
    tokenizer = open_library(files, config)
    if tokenizer is None:
        return hf_sentencepiece.load(files["tokenizer.model"], config)
    # transformers drops add_bos_token and add_eos_token beside tokenizer.json: the file has a
    # post-processor
    return from_library(tokenizer, config, overruled="tokenizer.json" not in files)


def open_library(files: Files, config: TokenizerConfig) -> tokenizers.Tokenizer | None:
    """Return the object of ``tokenizers`` that runs a folder's files; None: ``sentencepiece`` does.

    Raises
    ------
    ModelNotFoundError
        None of the files that hold a vocabulary is there.
    FormatError, ReadError
    """
    if "tokenizer.json" in files:
        tokenizer = _open_tokenizer_json(files["tokenizer.json"])
        _add_tokens(tokenizer, config)
        return tokenizer
    if "tokenizer.model" in files:
        return None
    if "vocab.json" in files and "merges.txt" in files:
        return _open_gpt2(files, config)
    raise ModelNotFoundError(
        "no tokenizer in the folder: it needs tokenizer.json, tokenizer.model, or vocab.json with "
        "merges.txt; without one only token ids work"
    )


def _open_tokenizer_json(path: str | PathLike[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    text = read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{fspath(path)}: not a tokenizer that can be read: {reason}") from error
    tokenizer.no_truncation()  # a file may ask to cut or pad every text in silence
    tokenizer.no_padding()
    return tokenizer


def _open_gpt2(files: Files, config: TokenizerConfig) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = read_object(fspath(files["vocab.json"]))
    lines = read_text(files["merges.txt"]).splitlines()
    merges = [line.partition(" ")[::2] for line in lines if line and line[:8] != "#version"]
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise FormatError(
            f"{fspath(files['vocab.json'])}: does not fit merges.txt beside it: {reason}"
        ) from error
    cuts: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre_rule("gpt-2").patterns
    ]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in sorted(config.named_texts & ids.keys())]
    )
    return tokenizer


def _add_tokens(tokenizer: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Add what the files beside tokenizer.json name, and change what they say otherwise."""
    from tokenizers import AddedToken

    known = {added.content: added for added in tokenizer.get_added_tokens_decoder().values()}
    texts = {token.text for token in config.added_tokens}
    named = [token for text, token in config.special_texts.items() if text not in texts]
    for token in (*config.added_tokens, *named):
        there = known.get(token.text)
        special = token.special
        if there is not None:
            special = there.special or (special and not _is_space(token.text))
        if there is not None and token.text not in config.decoder:
            if special != there.special:  # all that a name says
                there.special = True
                tokenizer.add_tokens([there])
            continue
        wanted = AddedToken(
            token.text,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            normalized=not special if token.normalized is None else token.normalized,
            special=special,
        )
        if repr(there) == repr(wanted):
            continue
        if there is None and tokenizer.token_to_id(token.text) is None:
            told = config.added.get(token.text)
            given = tokenizer.get_vocab_size(with_added_tokens=True)
            if told is not None and told != given:
                # tokenizer.json knows no other ids than the next one, nor does transformers.
                log.warning(
                    "added token %r gets the id %d that tokenizer.json leaves for it, not %d",
                    token.text[:80], given, told,
                )  # fmt: skip
        tokenizer.add_tokens([wanted])


def _is_space(text: str) -> bool:
    """Whether a token is nothing but white space: then it is text, whatever a list of names says.

    transformers 5 names Gemma's runs of spaces and line ends among the special tokens, and leaves
    them ordinary ones in tokenizer.json.
    """
    return not text.replace(vocabulary.SPACE, " ").strip()


def from_library(
    tokenizer: tokenizers.Tokenizer, config: TokenizerConfig, overruled: bool = True
) -> LoadedVocabulary:
    """Return what an object of ``tokenizers`` holds, with what the files beside it say.

    Parameters
    ----------
    overruled : bool
        As in `loaded.finish_hf`.
    """
    byte_level, strips_space, continuation = _spelling(tokenizer)
    found = id_table(tokenizer.get_vocab(with_added_tokens=True), byte_level)
    found.continuation = continuation
    marked = tokenizer.get_added_tokens_decoder()
    for i, added in marked.items():
        found.kinds[i] = vocabulary.CONTROL if added.special else vocabulary.USER_DEFINED
        if added.normalized and tokenizer.normalizer is not None:
            found.spell_as(i, tokenizer.normalizer.normalize_str(added.content))
    cuts = Cuts(
        frozenset(i for i, added in marked.items() if added.lstrip),
        frozenset(i for i, added in marked.items() if added.rstrip),
        frozenset(i for i, added in marked.items() if added.single_word),
    )
    prefix, suffix = _around(tokenizer)
    encode = LibraryEncoder(tokenizer, found.of_kind(vocabulary.CONTROL), cuts).encode
    loaded = finish_hf(found, config, encode, prefix, suffix, strips_space, overruled, cuts)
    loaded.disguises = tokenizer.normalizer is not None and any(
        added.special and added.normalized for added in marked.values()
    )
    return loaded


def _spelling(tokenizer: tokenizers.Tokenizer) -> tuple[bool, bool, str]:
    """Return (byte level, decoding drops a leading space, WordPiece's mark) from the decoder."""
    # The decoder alone as JSON; the whole tokenizer would take as long as reading it did.
    decoder = tokenizer.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = {step["type"]: step for step in state.get("decoders", [state]) if "type" in step}
    if "ByteLevel" in steps:
        return True, False, ""
    if "Metaspace" in steps:
        return False, steps["Metaspace"].get("prepend_scheme", "always") != "never", ""
    if "ByteFallback" in steps or "Replace" in steps:
        strip = steps.get("Strip", {})
        return False, strip.get("content") == " " and strip.get("start", 0) > 0, ""
    if "WordPiece" in steps:
        return False, True, str(steps["WordPiece"].get("prefix", "##"))
    raise UnsupportedError(
        f"tokenizer.json has a decoder of kind {', '.join(steps) or 'none'}; built: ByteLevel, "
        "Metaspace, ByteFallback with Replace, WordPiece"
    )


def _around(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the file's post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise UnsupportedError("tokenizer.json has a post-processor that changes the text's own tokens")
