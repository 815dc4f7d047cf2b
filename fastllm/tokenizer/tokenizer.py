"""Tokenizer: text to token ids and back, exactly as the model's own files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from fastllm.arguments import MAX_INT, boolean, shown, token_id_list, whole_number
from fastllm.errors import BudgetError, FormatError, ModelNotFoundError, RequestError
from fastllm.machine.memory import available_bytes
from fastllm.tokenizer import vocabulary
from fastllm.tokenizer.gguf_vocab import load_gguf
from fastllm.tokenizer.loaded import LoadedVocabulary
from fastllm.tokenizer.special import SHIELD, SpecialSplitter

if TYPE_CHECKING:
    from fastllm.formats.checkpoint import Checkpoint

# The libraries end the process where memory does. They take 45 to 660 bytes a character, of
# ordinary text in byte-level BPE 150; asking costs something, so only long texts are looked at.
LONG_TEXT = 1 << 22
CHARACTER_BYTES = 150


class Tokenizer:
    """Text to ids and back. Immutable; safe from several threads.

    Attributes
    ----------
    vocab_size : int
        Number of tokens; the model's matrices may have more rows.
    bos_token_id, eos_token_id : int or None
    eos_token_ids : tuple of int
        Every id that ends a generation: EOS, end of turn, end of message.
    add_bos : bool
        Whether `encode` puts BOS first when ``add_special_tokens`` is true.
    special_ids : frozenset of int
        Control and unknown tokens: left out by `decode`, never made out of untrusted text.
    chat_template : str or None
        Jinja source of the ordinary template; `chat_templates` has all of them by name.

    Examples
    --------
    >>> tokenizer = Tokenizer.from_gguf(metadata)  # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello"))  # doctest: +SKIP
    'Hello'
    """

    def __init__(self, loaded: LoadedVocabulary):
        found = loaded.vocabulary
        self._vocabulary = found
        self._encode = loaded.encode
        self._prefix_ids = list(loaded.prefix_ids)
        self._suffix_ids = list(loaded.suffix_ids)
        self.strips_space = loaded.strips_space
        self.vocab_size = len(found.tokens)
        self.bos_token_id = loaded.bos_token_id
        self.eos_token_id = loaded.eos_token_id
        self.eos_token_ids = loaded.eos_token_ids
        self.add_bos = self.bos_token_id is not None and self.bos_token_id in self._prefix_ids
        control = found.of_kind(vocabulary.CONTROL, vocabulary.UNKNOWN)
        self.special_ids = frozenset(control.values())
        self._control = SpecialSplitter(control)
        self._disguises = loaded.disguises
        self.chat_templates = loaded.chat_templates
        self.chat_template = loaded.chat_templates.get("default")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the ``tokenizer.*`` keys of a GGUF file.

        Raises
        ------
        RequestError, UnsupportedError, FormatError
        """
        if not isinstance(metadata, Mapping):
            raise RequestError(f"metadata={shown(metadata)}: must be a mapping of keys to values")
        return cls(load_gguf(metadata))

    @classmethod
    def from_hf(cls, files: Mapping[str, str | PathLike[str]]) -> Tokenizer:
        """Build from the files of a Hugging Face folder.

        Parameters
        ----------
        files : mapping
            File name to path: ``tokenizer.json``, or ``tokenizer.model``, or ``vocab.json`` with
            ``merges.txt``; beside them ``tokenizer_config.json``, ``generation_config.json``,
            ``chat_template.jinja`` and the like where there are any.

        Raises
        ------
        RequestError, UnsupportedError, FormatError, ModelNotFoundError
        """
        from fastllm.tokenizer.hf_vocab import load_hf

        if not isinstance(files, Mapping):
            raise RequestError(f"files={shown(files)}: must be a mapping of file names to paths")
        return cls(load_hf(files))

    def encode(
        self, text: str, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
        add_special_tokens : bool
            Add what the model expects around a text (BOS, for some EOS).
        parse_special : bool
            Take texts such as ``<|im_end|>`` for the control tokens they name. Only for text you
            trust, such as a rendered chat template (see `shield`); without it they are text.

        Raises
        ------
        RequestError
            Not a string, or it holds half a surrogate pair; a flag that is no bool.
        BudgetError
            It is so long that cutting it up would take more memory than there is.
        """
        _require_text("text", text)
        add_special_tokens = boolean("add_special_tokens", add_special_tokens)
        parse_special = boolean("parse_special", parse_special)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text is not valid Unicode: a lone surrogate at position {error.start}"
            ) from error
        if len(text) > LONG_TEXT:
            _check_memory(len(text))
        ids = self._encode(text, parse_special)
        return [*self._prefix_ids, *ids, *self._suffix_ids] if add_special_tokens else ids

    def marked_tokens(self) -> dict[str, int]:
        """Return text and id of the tokens that are cut out of a text before anything else."""
        marked = (vocabulary.CONTROL, vocabulary.UNKNOWN, vocabulary.USER_DEFINED)
        return self._vocabulary.of_kind(*marked)

    def shield(self, text: str) -> str:
        """Mark control texts inside untrusted text, for use inside a trusted one.

        The result, put into a chat template and encoded with ``parse_special=True``, gives the
        tokens of plain text. Text that holds no control text comes back as it was.
        """
        _require_text("text", text)
        marked = self._control.shield(text)
        # What may turn into a control text under way is text where a mark is.
        return SHIELD + marked if self._disguises and marked else marked

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = True) -> bytes:
        """Return the bytes that the ids stand for, before any repair of broken UTF-8."""
        skip = boolean("skip_special_tokens", skip_special_tokens)
        skipped = self.special_ids if skip else frozenset()
        spell = self._vocabulary.token_bytes
        text = b"".join(spell(i) for i in token_id_list(ids, "ids") if i not in skipped)
        return text[1:] if self.strips_space and text.startswith(b" ") else text

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD.

        Spaces are left as they are, whatever ``clean_up_tokenization_spaces`` of a folder says: it
        would take them away before punctuation that had one.

        Raises
        ------
        RequestError
            `ids` are none, or one is negative. Ids past the vocabulary (padding rows of the model)
            are no text.
        """
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token in the middle of a text."""
        if type(token_id) is not int or token_id < 0:
            token_id = whole_number("token_id", token_id, 0, MAX_INT)
        return self._vocabulary.token_bytes(token_id)

    def id_to_piece(self, token_id: int) -> str:
        """Return a token as the file spells it.

        Raises
        ------
        RequestError
            No such id.
        """
        token_id = whole_number("token_id", token_id, 0, self.vocab_size - 1)
        return self._vocabulary.tokens[token_id]

    def piece_to_id(self, piece: str) -> int | None:
        """Return the id of a token as the file spells it, or None."""
        _require_text("piece", piece)
        return self._vocabulary.ids.get(piece)


def _check_memory(length: int) -> None:
    needed, free = length * CHARACTER_BYTES, available_bytes()
    if needed > free:
        raise BudgetError(
            f"a text of {length} characters takes about {needed // 1_000_000} MB to cut into "
            f"tokens and {free // 1_000_000} MB are free: encode it in pieces"
        )


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name}={shown(value)}: must be a string")


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Build the tokenizer that lies in a checkpoint.

    Raises
    ------
    ModelNotFoundError
        It has none; the model still works with token ids.
    UnsupportedError, FormatError
        It is of a kind that is not built, or damaged.
    """
    if checkpoint.kind == "gguf":
        if checkpoint.metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            raise ModelNotFoundError(
                "the GGUF file holds no tokenizer (tokenizer.ggml.model); only token ids work"
            )
        return Tokenizer.from_gguf(checkpoint.metadata)
    if checkpoint.kind == "hf":
        from fastllm.tokenizer.hf_vocab import load_hf

        return Tokenizer(
            load_hf(checkpoint.tokenizer_files, checkpoint.metadata, checkpoint.generation_config)
        )
    raise FormatError(f"checkpoint of unknown kind {checkpoint.kind!r}")
