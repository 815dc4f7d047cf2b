"""Where a checkpoint keeps its chat template, and the special tokens that it may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastllm.errors import FormatError, ReadError
from fastllm.formats.json_files import read_object
from fastllm.tokenizer.hf_config import named_tokens, text_of, told_by

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
    source_for_tools : str or None
        Another template of the model's, "tool_use", for conversations with tools.
    """

    source: str
    special_tokens: dict[str, str | list[str]]
    source_for_tools: str | None = None


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
_OF_SENTENCEPIECE = {"unk_token": 0, "bos_token": 1, "eos_token": 2}  # where GGUF says nothing
_FOR_TOOLS = "tool_use"
_MORE_TEMPLATES = "additional_chat_templates"  # a folder, beside chat_template.jinja
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

    defaults = _OF_SENTENCEPIECE if metadata.get("tokenizer.ggml.model") == "llama" else {}
    found: dict[str, str | list[str]] = {}
    for name, key in _NAMED.items():
        i = metadata.get(f"tokenizer.ggml.{key}", defaults.get(name))
        known = isinstance(tokens, list) and isinstance(i, int) and 0 <= i < len(tokens)
        if known and isinstance(tokens, list) and i is not None:
            found[name] = str(tokens[i])
    other = metadata.get(f"tokenizer.chat_template.{_FOR_TOOLS}")
    return TemplateSource(source, found, other if isinstance(other, str) else None)


def _from_folder(files: Mapping[str, str]) -> TemplateSource | None:
    def read(name: str) -> dict[str, Any]:
        return read_object(files[name]) if name in files else {}

    config, special = read("tokenizer_config.json"), read("special_tokens_map.json")
    older, newer = config.get("chat_template"), read("chat_template.json").get("chat_template")
    source = _named(newer, "default") or _named(older, "default")
    other = _named(newer, _FOR_TOOLS) or _named(older, _FOR_TOOLS)
    if "chat_template.jinja" in files:  # the newest place, and the one that rules
        source, other = _read_text(files["chat_template.jinja"]), None
    if f"{_MORE_TEMPLATES}/{_FOR_TOOLS}.jinja" in files:
        other = _read_text(files[f"{_MORE_TEMPLATES}/{_FOR_TOOLS}.jinja"])
    if not source:
        return None

    sources = told_by(config, special)
    found: dict[str, str | list[str]] = {}
    for name, entry in named_tokens(sources).items():
        found[name] = text_of(entry) or ""
    for name in _LISTS:
        value = next(filter(None, (_texts(source.get(name)) for source in sources)), None)
        if value:
            found[name] = value
    return TemplateSource(source, found, other)


def _texts(several: object) -> list[str]:
    """Return the texts of a list of tokens."""
    texts = map(text_of, several if isinstance(several, list) else [])
    return [text for text in texts if text is not None]


def _named(value: object, name: str) -> str | None:
    """Return the one of several templates that has this name; a single one is the default."""
    if isinstance(value, list):
        named = {e.get("name"): e.get("template") for e in value if isinstance(e, dict)}
        value = named.get(name)
    elif name != "default":
        return None
    return value if isinstance(value, str) else None


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error
