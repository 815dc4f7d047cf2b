"""Where a checkpoint keeps its chat template, and the texts of BOS and EOS that it uses."""

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
    """A template's Jinja text and the two special tokens it may name."""

    source: str
    bos_token: str
    eos_token: str


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

    def text_of(key: str) -> str:
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        known = isinstance(tokens, list) and isinstance(i, int) and 0 <= i < len(tokens)
        return str(tokens[i]) if known and isinstance(tokens, list) and i is not None else ""

    return TemplateSource(source, text_of("bos"), text_of("eos"))


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

    def text_of(key: str) -> str:
        value = config.get(key) or special.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else ""

    return TemplateSource(source, text_of("bos_token"), text_of("eos_token"))


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
