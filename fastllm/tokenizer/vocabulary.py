"""Vocabulary: every token's text, kind and bytes, and which tokens end a generation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import compress

from fastllm.errors import RequestError

# Kinds of tokens: GGUF's ``tokenizer.ggml.token_type`` and sentencepiece's ``Type`` share numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Far above any vocabulary there is; a hostile id must not make us allocate gigabytes.
MAX_TOKEN_ID = 1 << 24

SPACE = "\u2581"  # sentencepiece's spelling of a space
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Files rarely say which tokens end a turn besides EOS, so their well-known texts do.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
    # fill-in-the-middle: padding, next repository, next file
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(b): b for b in printable}
    rest = (b for b in range(256) if chr(b) not in alphabet)
    return alphabet | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF_CHAR = _byte_alphabet()


@dataclass
class Vocabulary:
    """The tokens of one model.

    Attributes
    ----------
    tokens : list of str
        Text of each id as the file spells it.
    kinds : bytearray
        Kind of each id (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE).
    ids : dict
        Text to id.
    byte_level : bool
        True: ordinary tokens are spelled in GPT-2's byte alphabet. False: in UTF-8, with U+2581
        for a space and ``<0xHH>`` for single bytes.
    continuation : str
        Marks a token that continues a word ("##" in WordPiece); every other one starts with a
        space. Empty for all other vocabularies.
    """

    tokens: list[str]
    kinds: bytearray
    ids: dict[str, int]
    byte_level: bool
    continuation: str = ""
    _bytes: dict[int, bytes] = field(default_factory=dict, repr=False)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; empty for ids past the vocabulary.

        Raises
        ------
        RequestError
            The id is negative.
        """
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[int(token_id)] = self._spell(int(token_id))
        return found

    def _spell(self, token_id: int) -> bytes:
        if token_id < 0:
            raise RequestError(f"token id {token_id} is negative; ids start at 0")
        if token_id >= len(self.tokens):
            return b""  # matrices are padded beyond the vocabulary; such a row has no text
        text, kind = self.tokens[token_id], self.kinds[token_id]
        if kind in (CONTROL, UNKNOWN):
            return (text if self.byte_level else text.replace(SPACE, " ")).encode()
        if self.continuation:
            mark = self.continuation
            return (text[len(mark) :] if text.startswith(mark) else " " + text).encode()
        if self.byte_level:
            if kind != USER_DEFINED and all(c in BYTE_OF_CHAR for c in text):
                return bytes(BYTE_OF_CHAR[c] for c in text)
            return text.encode()
        byte = BYTE_TOKEN.fullmatch(text) if kind == BYTE else None
        return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE, " ").encode()

    def spell_as(self, token_id: int, text: str) -> None:
        """Let a token that is cut out of a text stand for another than its own.

        One that is looked for in the normalized text swallows what normalizing put before it.
        """
        shown = text if self.byte_level else text.replace(SPACE, " ")
        self._bytes[token_id] = shown.encode()

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Return text to id of all tokens of these kinds."""
        wanted = self.kinds.translate(bytes(kind in kinds for kind in range(256)))
        return {self.tokens[i]: i for i in compress(range(len(wanted)), wanted)}


def mark_end_tokens(
    vocabulary: Vocabulary, declared: Iterable[int | None], spellable: Collection[str] = ()
) -> tuple[int, ...]:
    """Find the ids that end a generation and make them control tokens.

    Parameters
    ----------
    vocabulary : Vocabulary
        Its kinds are corrected: some files call their end tokens ordinary ones.
    declared : iterable of int or None
        Ids that the file itself names.
    spellable : collection of str
        Ordinary tokens that plain text can merge into, such as Qwen's ``</s>`` of HTML; they end
        nothing.

    Returns
    -------
    tuple of int
        Sorted ids.
    """
    ids, kinds = vocabulary.ids, vocabulary.kinds
    found = {text: ids[text] for text in END_TEXTS if text in ids and text not in spellable}
    # Harmony and Solar use <|end|> between the parts of one answer; the answer ends elsewhere.
    if "<|end|>" in found and (
        {"<|return|>", "<|call|>"} <= found.keys()
        or ("<|flush|>" in found and not found.keys().isdisjoint(("<|call|>", "<|calls|>")))
    ):
        kinds[found.pop("<|end|>")] = USER_DEFINED
    # Gemma 4 and PLaMo have an ordinary HTML </s>.
    if "</s>" in found and ("<|tool_response>" in found or "<|plamo:eos|>" in ids):
        del found["</s>"]
    for i in found.values():
        kinds[i] = CONTROL
    return tuple(sorted({*found.values(), *(i for i in declared if i is not None)}))
