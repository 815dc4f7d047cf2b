"""``tokenizer.model``: a sentencepiece model and the tokens added around it."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from fastllm.errors import FormatError, ReadError
from fastllm.tokenizer import sentencepiece_model, vocabulary
from fastllm.tokenizer.fragments import SentencepieceFragments
from fastllm.tokenizer.hf_config import TokenizerConfig
from fastllm.tokenizer.loaded import LoadedVocabulary, finish_hf, id_table
from fastllm.tokenizer.special import SpecialSplitter, SplittingEncoder


def load(path: str | PathLike[str], config: TokenizerConfig) -> LoadedVocabulary:
    """Build the tokenizer of a ``tokenizer.model`` file.

    Raises
    ------
    FormatError
        It is not a sentencepiece model, or an added token has the id of another one.
    ReadError
        The disk refused.
    """
    name = fspath(path)
    try:
        with open(path, "rb") as file:
            proto = file.read()
    except OSError as error:
        raise ReadError(f"{name}: cannot be read: {error.strerror}") from error
    if not proto:
        raise FormatError(f"{name}: is empty, not a sentencepiece vocabulary")
    library = sentencepiece_model.processor(proto, name)
    size = library.get_piece_size()
    kinds = bytearray(_kind(library, i) for i in range(size))
    pieces = {library.id_to_piece(i): i for i in range(size)}
    for text, i in config.added.items():
        if pieces.get(text, i) != i or (i < size and text not in pieces):
            raise FormatError(f"{name}: added token {text[:80]!r} has the id {i} of another piece")
    # Gemma's turn markers are pieces that the library finds in any text; only we may find them.
    special = {i for t, i in config.added.items() if i in config.special_ids}
    special |= {pieces[t] for t in config.named_texts if t in pieces}
    hidden = [i for i in special if i < size and kinds[i] == vocabulary.NORMAL]
    if hidden:
        proto = sentencepiece_model.with_control_pieces(proto, frozenset(hidden))
        library = sentencepiece_model.processor(proto, name)
    found = id_table(pieces | config.added, byte_level=False)
    found.kinds[:size] = kinds
    for i in {*config.added.values()} - {*range(size)}:
        found.kinds[i] = vocabulary.USER_DEFINED
    for i in special:
        if found.kinds[i] != vocabulary.UNKNOWN:
            found.kinds[i] = vocabulary.CONTROL
    always = {
        text: i
        for text, i in config.added.items()
        if i >= size and found.kinds[i] == vocabulary.USER_DEFINED
    }
    control = found.of_kind(vocabulary.CONTROL, vocabulary.UNKNOWN)
    cuts = config.cuts(found.ids)
    first = library.encode("a", out_type=str)[:1]
    adds_space = bool(first) and first[0].startswith(vocabulary.SPACE)
    way = "never"
    if adds_space and not config.is_legacy():
        library = sentencepiece_model.processor(
            sentencepiece_model.without_dummy_prefix(proto), name
        )
        way = "start"
    encoder = SplittingEncoder(
        SpecialSplitter(always, cuts),
        SpecialSplitter(always | control, cuts),
        SentencepieceFragments(library, way),
    )
    bos = config.special_id("bos_token", found.ids)
    prefix = () if bos is None else (bos,)
    return finish_hf(found, config, encoder.encode, prefix, (), adds_space, cuts=cuts)


def _kind(library: Any, i: int) -> int:
    if library.is_control(i):
        return vocabulary.CONTROL
    if library.is_unknown(i):
        return vocabulary.UNKNOWN
    if library.is_byte(i):
        return vocabulary.BYTE
    return vocabulary.UNUSED if library.is_unused(i) else vocabulary.NORMAL
