"""GGUF tokens and scores as a sentencepiece model, so that the library itself does the merging.

The library reads a protobuf message ``ModelProto``; its few fields are written here byte by byte,
which spares a dependency. Only what changes encoding is written.

References
----------
sentencepiece ``src/sentencepiece_model.proto`` for the field numbers below.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastllm.errors import FormatError, ReadError
from fastllm.tokenizer.fragments import SentencepieceFragments
from fastllm.tokenizer.special import Place
from fastllm.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types
_MODEL_PIECE, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_TYPE, _TRAINER_BYTE_FALLBACK, _TRAINER_UNK_ID = 3, 35, 40
_TRAINER_BOS_ID, _TRAINER_EOS_ID, _TRAINER_PAD_ID = 41, 42, 43
_NORMALIZER_NAME, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_SQUEEZE, _NORMALIZER_ESCAPE = 1, 3, 4, 5
_TYPE_UNIGRAM, _TYPE_BPE = 1, 2
_ABSENT = (1 << 64) - 1  # -1 as a varint: no such token


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def model_proto(found: Vocabulary, scores: Sequence[float]) -> bytes:
    """Return a serialized ``ModelProto`` that merges by `scores` and falls back to bytes.

    The space before a text is not left to the library (GGUF adds it after special tokens too), and
    user-defined tokens are ordinary here: they were cut out of the text before.
    """
    kinds = bytearray(found.kinds)
    unknown = kinds.find(UNKNOWN)
    unknown = max(unknown, 0)
    for i, kind in enumerate(kinds):
        if kind == UNKNOWN:
            kinds[i] = CONTROL
        elif kind == USER_DEFINED or not NORMAL <= kind <= BYTE:
            kinds[i] = NORMAL
    kinds[unknown] = UNKNOWN  # the library wants exactly one
    has_bytes = kinds.count(BYTE) == 256
    if not has_bytes:  # it wants all of them or none
        kinds = kinds.replace(bytes([BYTE]), bytes([UNUSED]))
    text_tag = _varint(_PIECE_TEXT << 3 | _BYTES)
    score_tag = _varint(_PIECE_SCORE << 3 | _FLOAT)
    pack_score = struct.Struct("<f").pack
    out = []
    for text, kind, score in zip(found.tokens, kinds, scores, strict=False):
        raw = text.encode()
        piece = text_tag + _varint(len(raw)) + raw + score_tag + pack_score(score)
        if kind != NORMAL:
            piece += _number(_PIECE_TYPE, kind)
        out.append(_message(_MODEL_PIECE, piece))
    trainer = (
        _number(_TRAINER_TYPE, _TYPE_BPE)
        + _number(_TRAINER_BYTE_FALLBACK, int(has_bytes))
        + _number(_TRAINER_UNK_ID, unknown)
        + b"".join(
            _number(field, _ABSENT) for field in (_TRAINER_BOS_ID, _TRAINER_EOS_ID, _TRAINER_PAD_ID)
        )
    )
    normalizer = (
        _message(_NORMALIZER_NAME, b"identity")
        + _number(_NORMALIZER_DUMMY_PREFIX, 0)
        + _number(_NORMALIZER_SQUEEZE, 0)
        + _number(_NORMALIZER_ESCAPE, 1)
    )
    out.append(_message(_MODEL_TRAINER, trainer))
    out.append(_message(_MODEL_NORMALIZER, normalizer))
    return b"".join(out)


def with_control_pieces(proto: bytes, ids: frozenset[int]) -> bytes:
    """Return a serialized ``ModelProto`` with these pieces made control ones, never found in text.

    Of a field that comes twice, protobuf takes the last; so it is enough to append one.

    Raises
    ------
    FormatError
        The bytes are not a protobuf message.
    """
    out = []
    at = index = 0
    try:
        while at < len(proto):
            start = at
            tag, at = _read_varint(proto, at)
            if tag & 7 != _BYTES:  # no other type stands at the top level of this message
                raise FormatError(f"sentencepiece model: wire type {tag & 7} at byte {start}")
            length, at = _read_varint(proto, at)
            content, at = proto[at : at + length], at + length
            if tag >> 3 == _MODEL_PIECE:
                if index in ids:
                    content += _number(_PIECE_TYPE, CONTROL)
                index += 1
            out.append(_message(tag >> 3, content))
    except IndexError as error:
        raise FormatError("sentencepiece model: ends inside a field") from error
    return b"".join(out)


def without_dummy_prefix(proto: bytes) -> bytes:
    """Return a serialized ``ModelProto`` that puts no space before a text."""
    return proto + _message(_MODEL_NORMALIZER, _number(_NORMALIZER_DUMMY_PREFIX, 0))


@dataclass(frozen=True)
class SentencepieceModel:
    """What a ``tokenizer.model`` file says, as far as sentencepiece's own object does not.

    Attributes
    ----------
    is_bpe : bool
    scores : tuple of float
        One for each piece.
    user_defined : tuple of int
        Pieces that are cut out of any text.
    """

    is_bpe: bool
    scores: tuple[float, ...]
    user_defined: tuple[int, ...]


def read_model(path: str) -> SentencepieceModel:
    """Read a ``tokenizer.model`` file.

    Raises
    ------
    FormatError
        It is not a sentencepiece model.
    ReadError
        The disk refused.
    """
    try:
        with open(path, "rb") as file:
            proto = file.read()
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error
    kind = _TYPE_UNIGRAM
    scores: list[float] = []
    user_defined: list[int] = []
    try:
        for field, content in _fields(proto):
            if field == _MODEL_TRAINER:
                kind = dict(_fields(content)).get(_TRAINER_TYPE, kind)
            elif field == _MODEL_PIECE:
                piece = dict(_fields(content))
                if piece.get(_PIECE_TYPE, NORMAL) == USER_DEFINED:
                    user_defined.append(len(scores))
                scores.append(struct.unpack("<f", piece.get(_PIECE_SCORE, bytes(4)))[0])
    except (IndexError, TypeError, struct.error) as error:
        raise FormatError(f"{path}: is not a sentencepiece vocabulary") from error
    return SentencepieceModel(kind == _TYPE_BPE, tuple(scores), tuple(user_defined))


def _fields(raw: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and value of a message's fields: int, or bytes not looked into."""
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _read_varint(raw, at)
            yield tag >> 3, value
            continue
        length = {_DOUBLE: 8, _FLOAT: 4}.get(wire)
        if length is None:
            length, at = _read_varint(raw, at)
        yield tag >> 3, raw[at : at + length]
        at += length


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while raw[at] & 0x80:
        value |= (raw[at] & 0x7F) << shift
        shift += 7
        at += 1
    return value | raw[at] << shift, at + 1


def processor(proto: bytes, where: str) -> Any:
    """Return a ``SentencePieceProcessor`` of a serialized model; `where` names it in errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its generated bindings warn on newer Pythons
        from sentencepiece import SentencePieceProcessor
    try:
        return SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{where} is not a sentencepiece vocabulary: {reason}") from error


def fragment_encoder(
    found: Vocabulary, scores: Sequence[float], add_space: str
) -> Callable[[str, Place], list[int]]:
    """Return the encoder of text between special tokens.

    Parameters
    ----------
    add_space : str
        As in `SentencepieceFragments`.
    """
    try:
        proto = model_proto(found, scores)
    except (OverflowError, struct.error) as error:
        raise FormatError("tokenizer.ggml.scores holds numbers beyond float32") from error
    library = processor(proto, "tokenizer.ggml.tokens")
    return SentencepieceFragments(library, add_space)
