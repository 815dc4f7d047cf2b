"""Encoders of the text between special tokens, as objects, so that a tokenizer can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastllm.tokenizer.special import Place
from fastllm.tokenizer.vocabulary import SPACE

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class LibraryFragments:
    """By `tokenizers`; where a fragment stands makes no difference."""

    library: tokenizers.Tokenizer

    def __call__(self, text: str, place: Place) -> list[int]:  # noqa: ARG002
        """Return the ids of a fragment."""
        return list(self.library.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class SentencepieceFragments:
    """By `sentencepiece`.

    Attributes
    ----------
    add_space : str
        When a space is put before a fragment: "never" (or by the library itself); "behind" every
        special token and at the start, as a GGUF file's ``add_space_prefix`` asks; as the step
        Metaspace of `tokenizers` does, which leaves a fragment alone that begins with a space:
        "always", or at the text's start only, "first"; or "start", there whatever it begins with.
    """

    library: Any
    add_space: str = "never"

    def __call__(self, text: str, place: Place) -> list[int]:
        """Return the ids of a fragment."""
        return list(self.library.encode(SPACE + text if self._wants_space(text, place) else text))

    def _wants_space(self, text: str, place: Place) -> bool:
        if self.add_space in ("never", "behind"):
            return self.add_space == "behind"
        if self.add_space == "start":
            return place is Place.START
        if self.add_space == "first" and place is not Place.START:
            return False
        return not text.startswith((" ", SPACE))
