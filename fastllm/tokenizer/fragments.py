"""Encoders of the text between special tokens, as objects, so that a tokenizer can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastllm.tokenizer.vocabulary import SPACE

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class LibraryFragments:
    """By `tokenizers`; where a fragment stands makes no difference."""

    library: tokenizers.Tokenizer

    def __call__(self, text: str, starts: bool) -> list[int]:  # noqa: ARG002
        """Return the ids of a fragment."""
        return list(self.library.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class SentencepieceFragments:
    """By `sentencepiece`.

    Attributes
    ----------
    add_space : bool
        Put a space before the text's start and after every special token, as a GGUF file's
        ``add_space_prefix`` asks.
    """

    library: Any
    add_space: bool = False

    def __call__(self, text: str, starts: bool) -> list[int]:
        """Return the ids of a fragment; `starts` at the start and after a special token."""
        return list(self.library.encode(SPACE + text if self.add_space and starts else text))
