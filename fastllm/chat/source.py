"""Where a checkpoint keeps its chat template, and the special tokens that it may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastllm.errors import FormatError, ReadError
from fastllm.formats.json_files import read_object

if TYPE_CHECKING:
    from fastllm.formats.checkpoint import Checkpoint


@dataclass(frozen=True)
class TemplateSource:
    """A template's Jinja text and the special tokens it may name.

    Attributes
    ----------
    source : str
    special_tokens : dict of str to str or list of str
        Under transformers' names, such as ``bos_token``; those that the model has.
    """

    source: str
    special_tokens: dict[str, str | list[str]]


# What transformers hands to a template, and the key that GGUF keeps the token's id under.
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def find_source(checkpoint: Checkpoint) -> TemplateSource | None:
    """Return the template of a checkpoint; None where it has none.

    Raises
    ------
    FormatError, ReadError
        A file beside the weights is damaged or cannot be read.
    """
    if checkpoint.kind == "gguf":
        return _from_gguf(checkpoint.metadata)
    return _from_folder(checkpoint.tokenizer_files)


def _from_gguf(metadata: Mapping[str, Any]) -> TemplateSource | None:
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        return None
    tokens = metadata.get("tokenizer.ggml.tokens")

    found: dict[str, str | list[str]] = {}
    for name, key in _NAMED.items():
        i = metadata.get(f"tokenizer.ggml.{key}")
        known = isinstance(tokens, list) and isinstance(i, int) and 0 <= i < len(tokens)
        if known and isinstance(tokens, list) and i is not None:
            found[name] = str(tokens[i])
    return TemplateSource(source, found)


def _from_folder(files: Mapping[str, str]) -> TemplateSource | None:
    def read(name: str) -> dict[str, Any]:
        return read_object(files[name]) if name in files else {}

    config, special = read("tokenizer_config.json"), read("special_tokens_map.json")
    source = _named_default(config.get("chat_template"))
    source = _named_default(read("chat_template.json").get("chat_template")) or source
    if "chat_template.jinja" in files:  # the newest place, and the one that rules
        source = _read_text(files["chat_template.jinja"])
    if not source:
        return None

    found: dict[str, str | list[str]] = {}
    for name in (*_NAMED, *_LISTS):
        value = _texts(config.get(name)) or _texts(special.get(name))
        if value and isinstance(value, list) == (name in _LISTS):
            found[name] = value
    return TemplateSource(source, found)


def _texts(value: object) -> str | list[str] | None:
    """Return the text of a token, or those of a list; None where there is none."""
    if isinstance(value, dict):  # an added token with its flags
        value = value.get("content")
    if isinstance(value, list):
        every = [_texts(one) for one in value]
        return [one for one in every if isinstance(one, str)]
    return value if isinstance(value, str) else None


def _named_default(value: object) -> str | None:
    """Return a template, or of a list of named ones that called "default"."""
    if isinstance(value, list):
        named = {e.get("name"): e.get("template") for e in value if isinstance(e, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error
