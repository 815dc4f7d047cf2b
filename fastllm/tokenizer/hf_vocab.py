"""The tokenizer files of a Hugging Face folder.

``tokenizer.json`` is run by ``tokenizers`` as it is, ``tokenizer.model`` by ``sentencepiece``, and
``vocab.json`` with ``merges.txt`` is GPT-2's byte-level BPE (OPT ships no other file). What those
libraries do not know (BOS and EOS, templates, ids that end a generation) comes from the small
configuration files beside them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm.errors import FormatError, ModelNotFoundError, ReadError, UnsupportedError
from fastllm.tokenizer import sentencepiece_model, vocabulary
from fastllm.tokenizer.loaded import LoadedVocabulary
from fastllm.tokenizer.pre import pre_rule
from fastllm.tokenizer.special import SHIELD, SpecialSplitter, SplittingEncoder
from fastllm.tokenizer.vocabulary import Vocabulary, mark_end_tokens

if TYPE_CHECKING:
    import tokenizers

Files = Mapping[str, str | PathLike[str]]

# Far above any vocabulary there is; a hostile id must not make us allocate gigabytes.
MAX_TOKEN_ID = 1 << 24


def load_hf(files: Files) -> LoadedVocabulary:
    """Build the tokenizer that a folder's files describe.

    Parameters
    ----------
    files : mapping of str to path
        File name to path.

    Raises
    ------
    ModelNotFoundError
        None of the files that hold a vocabulary is there.
    UnsupportedError, FormatError, ReadError
    """
    config = _Config(files)
    if "tokenizer.json" in files:
        return _from_library(_open_tokenizer_json(files["tokenizer.json"]), config)
    if "tokenizer.model" in files:
        return _from_sentencepiece(files["tokenizer.model"], config)
    if "vocab.json" in files and "merges.txt" in files:
        return _from_library(_gpt2_files(files, config), config)
    raise ModelNotFoundError(
        "no tokenizer in the folder: it needs tokenizer.json, tokenizer.model, or vocab.json with "
        "merges.txt; without one only token ids work"
    )


class _Config:
    """The small JSON files, read where they are."""

    def __init__(self, files: Files):
        self.tokenizer = _json_object(files, "tokenizer_config.json")
        self.generation = _json_object(files, "generation_config.json")
        self.model = _json_object(files, "config.json")
        self.special_map = _json_object(files, "special_tokens_map.json")
        self.added = _json_object(files, "added_tokens.json")
        self.chat_templates = _chat_templates(files, self.tokenizer)

    def special_text(self, name: str) -> str | None:
        """Return the text of "bos_token" and its like."""
        for source in (self.tokenizer, self.special_map):
            value = source.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                return value
        return None

    def special_id(self, name: str, ids: Mapping[str, int]) -> int | None:
        text = self.special_text(name)
        return ids.get(text) if text is not None else _first_id(self.model.get(f"{name}_id"))

    def end_ids(self) -> list[int]:
        """Return the ids that generation_config.json or config.json name as EOS."""
        for source in (self.generation, self.model):
            value = source.get("eos_token_id")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                return [i for i in values if isinstance(i, int) and i >= 0]
        return []


def _first_id(value: object) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and value >= 0 else None


def _text(path: str | PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}") from error


def _json_object(files: Files, name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(_text(files[name]))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{files[name]} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{files[name]} holds a {type(value).__name__}, expected an object")
    return value


def _chat_templates(files: Files, config: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    given = config.get("chat_template")
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        for entry in given:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name", "default"))] = entry["template"]
    if "chat_template.json" in files:
        value = _json_object(files, "chat_template.json").get("chat_template")
        if isinstance(value, str):
            templates["default"] = value
    if "chat_template.jinja" in files:
        templates["default"] = _text(files["chat_template.jinja"])
    return templates


def _open_tokenizer_json(path: str | PathLike[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    text = _text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{path} is not a tokenizer that can be read: {reason}") from error
    tokenizer.no_truncation()  # a file may ask to cut or pad every text in silence
    tokenizer.no_padding()
    return tokenizer


def _gpt2_files(files: Files, config: _Config) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = _json_object(files, "vocab.json")
    lines = _text(files["merges.txt"]).split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise FormatError(
            f"{files['vocab.json']} and {files['merges.txt']} do not fit together: {reason}"
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in pre_rule("gpt-2").patterns
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = (config.special_text(f"{n}_token") for n in ("bos", "eos", "unk", "pad"))
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in named if text in ids]
    )
    return tokenizer


def _from_library(tokenizer: tokenizers.Tokenizer, config: _Config) -> LoadedVocabulary:
    library_ids = tokenizer.get_vocab(with_added_tokens=True)
    byte_level, strips_space, continuation = _spelling(tokenizer)
    found = _table(library_ids, byte_level)
    found.continuation = continuation
    for i, added in tokenizer.get_added_tokens_decoder().items():
        found.kinds[i] = vocabulary.CONTROL if added.special else vocabulary.USER_DEFINED
    ordinary = {t for t in vocabulary.END_TEXTS if t in found.ids} - found.of_kind(
        vocabulary.CONTROL
    ).keys()
    encode = _library_encoder(tokenizer, found)
    prefix, suffix = _around(tokenizer)
    return _finish(found, config, encode, prefix, suffix, strips_space, ordinary)


def _table(ids: Mapping[str, int], byte_level: bool) -> Vocabulary:
    if not ids:
        raise FormatError("the tokenizer has no tokens")
    last = max(ids.values())
    if last > MAX_TOKEN_ID or min(ids.values()) < 0:
        raise FormatError(f"the tokenizer has a token id of {last}, beyond {MAX_TOKEN_ID}")
    tokens = [""] * (last + 1)
    kinds = bytearray([vocabulary.UNUSED]) * (last + 1)
    for text, i in ids.items():
        tokens[i] = text
        kinds[i] = vocabulary.NORMAL
        if not byte_level and vocabulary.BYTE_TOKEN.fullmatch(text):
            kinds[i] = vocabulary.BYTE
    return Vocabulary(tokens, kinds, dict(ids), byte_level)


def _spelling(tokenizer: tokenizers.Tokenizer) -> tuple[bool, bool, str]:
    """Return (byte level, decoding drops a leading space, WordPiece's mark) from the decoder."""
    decoder = json.loads(tokenizer.to_str())["decoder"] if tokenizer.decoder else None
    steps = decoder.get("decoders", [decoder]) if decoder else []
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return True, False, ""
    if "Metaspace" in by_type:
        return False, by_type["Metaspace"].get("prepend_scheme", "always") != "never", ""
    if "ByteFallback" in by_type or "Replace" in by_type:
        strip = by_type.get("Strip", {})
        return False, strip.get("content") == " " and strip.get("start", 0) > 0, ""
    if "WordPiece" in by_type:
        return False, True, str(by_type["WordPiece"].get("prefix", "##"))
    raise UnsupportedError(
        f"tokenizer.json has a decoder of kind {list(by_type) or None}; built: ByteLevel, "
        "Metaspace, ByteFallback with Replace, WordPiece"
    )


def _library_encoder(
    tokenizer: tokenizers.Tokenizer, found: Vocabulary
) -> Callable[[str, bool], list[int]]:
    control = SpecialSplitter(found.of_kind(vocabulary.CONTROL))
    lock = threading.Lock()  # the flag belongs to the shared object

    def plain(text: str, as_text: bool) -> list[int]:
        with lock:
            tokenizer.encode_special_tokens = as_text
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(text: str, parse_special: bool) -> list[int]:
        if not parse_special or SHIELD not in text:
            return plain(text, not parse_special)
        # Someone tried to smuggle a control text in; cut at the true ones ourselves.
        ids: list[int] = []
        for part in control.split(text):
            ids += [part] if isinstance(part, int) else plain(part.replace(SHIELD, ""), True)
        return ids

    return encode


def _around(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the file's post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise UnsupportedError("tokenizer.json has a post-processor that changes the text's own tokens")


def _from_sentencepiece(path: str | PathLike[str], config: _Config) -> LoadedVocabulary:
    try:
        proto = Path(path).read_bytes()
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}") from error
    library = sentencepiece_model.processor(proto, str(path))
    size = library.get_piece_size()
    tokens = [library.id_to_piece(i) for i in range(size)]
    added = _added_tokens(config, {text: i for i, text in enumerate(tokens)})
    ids = {text: i for i, text in enumerate(tokens)} | added
    found = _table(ids, byte_level=False)
    for i in range(size):
        found.kinds[i] = _piece_kind(library, i)
    for text, i in added.items():
        found.kinds[i] = vocabulary.USER_DEFINED if i >= size else found.kinds[i]
        if i in _special_ids(config) or text in _named_texts(config):
            found.kinds[i] = vocabulary.CONTROL
    beyond = {text: i for text, i in added.items() if i >= size}
    control = found.of_kind(vocabulary.CONTROL, vocabulary.UNKNOWN)
    always = {text: i for text, i in beyond.items() if text not in control}
    encoder = SplittingEncoder(
        SpecialSplitter(always),
        SpecialSplitter(always | control),
        lambda text, _: list(library.encode(text)),
    )
    first = library.encode("a", out_type=str)[:1]
    adds_space = bool(first) and first[0].startswith(vocabulary.SPACE)
    bos = config.special_id("bos_token", found.ids)
    prefix = (bos,) if bos is not None else ()
    ordinary = {t for t in vocabulary.END_TEXTS if t in found.ids and t not in control}
    return _finish(found, config, encoder.encode, prefix, (), adds_space, ordinary)


def _piece_kind(library: Any, i: int) -> int:
    if library.is_control(i):
        return vocabulary.CONTROL
    if library.is_unknown(i):
        return vocabulary.UNKNOWN
    if library.is_byte(i):
        return vocabulary.BYTE
    return vocabulary.UNUSED if library.is_unused(i) else vocabulary.NORMAL


def _added_tokens(config: _Config, known: Mapping[str, int]) -> dict[str, int]:
    added = {text: i for text, i in config.added.items() if isinstance(i, int)}
    for i, entry in _decoder_entries(config).items():
        text = entry.get("content")
        if isinstance(text, str) and text:
            added[text] = i
    for text, i in added.items():
        if known.get(text, i) != i or i < 0:
            raise FormatError(f"added token {text[:80]!r} has id {i} and {known.get(text)}")
    return added


def _decoder_entries(config: _Config) -> dict[int, dict[str, Any]]:
    entries = config.tokenizer.get("added_tokens_decoder")
    if not isinstance(entries, dict):
        return {}
    return {int(i): e for i, e in entries.items() if str(i).isdigit() and isinstance(e, dict)}


def _special_ids(config: _Config) -> set[int]:
    return {i for i, entry in _decoder_entries(config).items() if entry.get("special")}


def _named_texts(config: _Config) -> set[str]:
    named = (config.special_text(f"{n}_token") for n in ("bos", "eos", "unk", "pad"))
    return {text for text in named if text is not None}


def _finish(
    found: Vocabulary,
    config: _Config,
    encode: Callable[[str, bool], list[int]],
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    strips_space: bool,
    ordinary: set[str],
) -> LoadedVocabulary:
    bos = config.special_id("bos_token", found.ids)
    eos = config.special_id("eos_token", found.ids)
    # tokenizer_config.json overrules the vocabulary file where it speaks, as in transformers.
    add_bos, add_eos = (config.tokenizer.get(f"add_{n}_token") for n in ("bos", "eos"))
    if isinstance(add_bos, bool) and bos is not None:
        rest = prefix[1:] if prefix[:1] == (bos,) else prefix
        prefix = (bos, *rest) if add_bos else rest
    if isinstance(add_eos, bool) and eos is not None:
        rest = suffix[:-1] if suffix[-1:] == (eos,) else suffix
        suffix = (*rest, eos) if add_eos else rest
    ends = mark_end_tokens(found, [eos, *config.end_ids()], ordinary)
    return LoadedVocabulary(
        vocabulary=found,
        encode=encode,
        bos_token_id=bos,
        eos_token_id=eos,
        eos_token_ids=ends,
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_space=strips_space,
        chat_templates=config.chat_templates,
    )
