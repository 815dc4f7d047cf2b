"""LoadedVocabulary: what the readers of a vocabulary hand to `Tokenizer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastllm.tokenizer.vocabulary import Vocabulary


@dataclass
class LoadedVocabulary:
    """What a reader found: the tokens, how to encode, and the ids around a text.

    Attributes
    ----------
    vocabulary : Vocabulary
    encode : callable
        ``(text, parse_special) -> ids``, nothing added.
    bos_token_id, eos_token_id : int or None
    eos_token_ids : tuple of int
        All ids that end a generation.
    prefix_ids, suffix_ids : tuple of int
        Put around a text by ``add_special_tokens=True``.
    strips_space : bool
        Encoding put a space before the text, so decoding takes one away.
    chat_templates : dict
        Name to source; the ordinary one is "default".
    """

    vocabulary: Vocabulary
    encode: Callable[[str, bool], list[int]]
    bos_token_id: int | None
    eos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    strips_space: bool
    chat_templates: dict[str, str]
