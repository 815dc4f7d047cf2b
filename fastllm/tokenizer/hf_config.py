"""The small JSON files beside a Hugging Face tokenizer: which token is what, and templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

from fastllm.errors import FormatError, ReadError
from fastllm.formats.json_files import read_object
from fastllm.tokenizer.special import Cuts
from fastllm.tokenizer.vocabulary import MAX_TOKEN_ID

Files = Mapping[str, str | PathLike[str]]
_USUAL = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of a text as a whole.

    Attributes
    ----------
    text : str
    special : bool
        A control token: not made out of untrusted text, not shown.
    lstrip, rstrip : bool
        It swallows the white space before or after it.
    single_word : bool
        It is not looked for inside words.
    normalized : bool or None
        It is looked for in the normalized text; None: where it is not special.
    """

    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None


def read_text(path: str | PathLike[str]) -> str:
    """Return a UTF-8 file's text; `FormatError` or `ReadError` if that fails."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise FormatError(f"{fspath(path)}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ReadError(f"{fspath(path)}: cannot be read: {error.strerror}") from error


def told_by(
    config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> tuple[Mapping[str, Any], ...]:
    """Return which of tokenizer_config.json and special_tokens_map.json count, the first first.

    The map is from before ``added_tokens_decoder``; transformers leaves it alone beside one.
    """
    return (config,) if has_decoder(config) else (special_map, config)


def has_decoder(config: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer_config.json lists its added tokens itself."""
    return isinstance(config.get("added_tokens_decoder"), dict)


def named_tokens(sources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tokens that have a name of their own, such as ``bos_token``: name to entry.

    An entry is a text or an object with flags. The usual names come first, in their order (that of
    the ids that new tokens get); models may have others (``image_token``), also in
    ``extra_special_tokens``.
    """
    found: dict[str, Any] = {}
    for source in sources:
        more = source.get("extra_special_tokens")
        named = {name: entry for name, entry in source.items() if name.endswith("_token")}
        for name, entry in {**named, **(more if isinstance(more, dict) else {})}.items():
            if text_of(entry):
                found.setdefault(name, entry)
    return {name: found[name] for name in (*_USUAL, *found) if name in found}


def text_of(entry: Any) -> str | None:
    """Return the text of a token given as such or as an object with flags; else None."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


class TokenizerConfig:
    """What ``tokenizer_config.json`` and its neighbours say.

    Parameters
    ----------
    files : mapping of str to path
        File name to path; each file may be missing.
    model_config, generation_config : mapping
        Contents of ``config.json`` and ``generation_config.json``; files of these names win.

    Attributes
    ----------
    named_texts : set of str
        Texts of BOS, EOS, UNK, padding and the like.
    special_texts : dict of str to AddedToken
        Every control token that a file names, in order.
    added : dict of str to int
        Tokens added to the vocabulary after its training.
    added_tokens : list of AddedToken
        The same in order of their ids, as they want to be looked for.
    decoder : dict of str to AddedToken
        Those of ``added_tokens_decoder``, by text; what it says of a token goes before all else.
    special_ids : set of int
        Those of them that are control tokens.
    chat_templates : dict of str to str
    """

    def __init__(
        self,
        files: Files,
        model_config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ):
        def read(name: str) -> dict[str, Any]:
            return read_object(fspath(files[name])) if name in files else {}

        self._tokenizer = read("tokenizer_config.json")
        self._sources = told_by(self._tokenizer, read("special_tokens_map.json"))
        self._named = named_tokens(self._sources)
        self._model = read("config.json") or model_config or {}
        self._generation = read("generation_config.json") or generation_config or {}
        self.named_texts = {t for t in map(text_of, self._named.values()) if t}
        older = {} if has_decoder(self._tokenizer) else read("added_tokens.json")
        self.added = {t: i for t, i in older.items() if isinstance(i, int)}
        self.special_ids: set[int] = set()
        self.special_texts = self._special_texts()
        self.added_tokens: list[AddedToken] = []
        self.decoder: dict[str, AddedToken] = {}
        self._read_added_tokens()
        self.chat_templates = self._templates(files, read("chat_template.json"))

    def _special_texts(self) -> dict[str, AddedToken]:
        """Control tokens named alone or in a list, as texts or as objects with flags."""
        entries = [*self._named.values()]
        for source in self._sources:
            for name in _LISTS:
                several = source.get(name)
                entries += several if isinstance(several, list) else []
        found: dict[str, AddedToken] = {}
        for entry in entries:
            token = _added_token(entry, special=True)
            if token is not None:
                found.setdefault(token.text, token)
        return found

    def _read_added_tokens(self) -> None:
        entries = self._tokenizer.get("added_tokens_decoder")
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            if not (key.isdecimal() and isinstance(entry, dict)):
                continue
            text = entry.get("content")
            if isinstance(text, str) and text:
                self.added[text] = int(key)
                token = _added_token(entry, special=bool(entry.get("special")))
                assert token is not None
                self.decoder[text] = token
                if token.special:
                    self.special_ids.add(int(key))
        for text, i in self.added.items():
            if not 0 <= i <= MAX_TOKEN_ID:
                raise FormatError(f"added token {text[:80]!r} has id {i}, not in 0..{MAX_TOKEN_ID}")
        for text in sorted(self.added, key=self.added.__getitem__):
            token = self.decoder.get(text) or AddedToken(text)
            if text in self.special_texts and not token.special:
                token = replace(token, special=True)
            self.added_tokens.append(token)

    def _templates(self, files: Files, template_file: Mapping[str, Any]) -> dict[str, str]:
        templates: dict[str, str] = {}
        given = self._tokenizer.get("chat_template")
        for entry in given if isinstance(given, list) else [{"name": "default", "template": given}]:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name"))] = entry["template"]
        if isinstance(template_file.get("chat_template"), str):
            templates["default"] = template_file["chat_template"]
        if "chat_template.jinja" in files:
            templates["default"] = read_text(files["chat_template.jinja"])
        if "additional_chat_templates/tool_use.jinja" in files:
            path = files["additional_chat_templates/tool_use.jinja"]
            templates["tool_use"] = read_text(path)
        return templates

    def cuts(self, ids: Mapping[str, int]) -> Cuts:
        """Return how the added and special tokens among `ids` want to be cut out."""
        tokens = (*self.special_texts.values(), *self.added_tokens)  # the latter know more
        last = {ids[token.text]: token for token in tokens if token.text in ids}
        return Cuts(
            frozenset(i for i, token in last.items() if token.lstrip),
            frozenset(i for i, token in last.items() if token.rstrip),
            frozenset(i for i, token in last.items() if token.single_word),
        )

    def special_id(self, name: str, ids: Mapping[str, int]) -> int | None:
        """Return the id of "bos_token" or "eos_token", by its text or from config.json."""
        text = text_of(self._named.get(name))
        if text is not None and text in ids:
            return ids[text]
        value = self._model.get(f"{name}_id")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and 0 <= value <= MAX_TOKEN_ID else None

    def adds(self, name: str) -> bool | None:
        """Return ``add_bos_token`` or ``add_eos_token`` (name "bos", "eos"); None: not said."""
        value = self._tokenizer.get(f"add_{name}_token")
        return value if isinstance(value, bool) else None

    def is_legacy(self) -> bool:
        """Return whether a tokenizer.model's space is put behind special tokens, too."""
        return self._tokenizer.get("legacy") is not False

    def end_ids(self) -> list[int]:
        """Return the ids that end a generation by generation_config.json, else config.json."""
        for source in (self._generation, self._model):
            value = source.get("eos_token_id")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                return [i for i in values if isinstance(i, int) and 0 <= i <= MAX_TOKEN_ID]
        return []


def _added_token(entry: Any, special: bool) -> AddedToken | None:
    """Return a token given as its text or as an object with flags; None for anything else."""
    text = text_of(entry)
    if not text:
        return None
    if not isinstance(entry, dict):
        return AddedToken(text, special)
    normalized = entry.get("normalized")
    return AddedToken(
        text,
        special,
        lstrip=entry.get("lstrip") is True,
        rstrip=entry.get("rstrip") is True,
        single_word=entry.get("single_word") is True,
        normalized=normalized if isinstance(normalized, bool) else None,
    )
