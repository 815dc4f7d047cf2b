"""LoadedVocabulary: what the readers of a vocabulary hand to `Tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastllm.errors import FormatError
from fastllm.tokenizer import vocabulary
from fastllm.tokenizer.hf_config import TokenizerConfig
from fastllm.tokenizer.special import PLAIN, Cuts
from fastllm.tokenizer.vocabulary import MAX_TOKEN_ID, Vocabulary, mark_end_tokens


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
    cuts : Cuts
        How some special tokens want to be cut out of a text.
    disguises : bool
        Texts that look otherwise may be normalized to control texts.
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
    cuts: Cuts = PLAIN
    disguises: bool = False


def id_table(ids: Mapping[str, int], byte_level: bool) -> Vocabulary:
    """Return the vocabulary of a text-to-id table; ids between that name nothing are UNUSED.

    Raises
    ------
    FormatError
        The table is empty or has an absurd id.
    """
    if not ids:
        raise FormatError("the tokenizer has no tokens")
    last = max(ids.values())
    if last > MAX_TOKEN_ID or min(ids.values()) < 0:
        raise FormatError(f"the tokenizer has a token id of {last}, beyond {MAX_TOKEN_ID}")
    tokens = [""] * (last + 1)
    kinds = bytearray([vocabulary.UNUSED]) * (last + 1)
    for text, i in ids.items():
        tokens[i] = text
        is_byte = not byte_level and vocabulary.BYTE_TOKEN.fullmatch(text)
        kinds[i] = vocabulary.BYTE if is_byte else vocabulary.NORMAL
    return Vocabulary(tokens, kinds, dict(ids), byte_level)


def finish_hf(
    found: Vocabulary,
    config: TokenizerConfig,
    encode: Callable[[str, bool], list[int]],
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    strips_space: bool,
    overruled: bool = True,
    cuts: Cuts = PLAIN,
) -> LoadedVocabulary:
    """Join a vocabulary of a Hugging Face folder with what its configuration says.

    Parameters
    ----------
    prefix, suffix : tuple of int
        What the vocabulary's own file puts around a text.
    overruled : bool
        ``add_bos_token`` and ``add_eos_token`` of tokenizer_config.json decide instead.
    cuts : Cuts
        How some special tokens want to be cut out of a text.
    """
    bos = config.special_id("bos_token", found.ids)
    eos = config.special_id("eos_token", found.ids)
    if overruled and bos is not None and config.adds("bos") is not None:
        rest = prefix[1:] if prefix[:1] == (bos,) else prefix
        prefix = (bos, *rest) if config.adds("bos") else rest
    if overruled and eos is not None and config.adds("eos") is not None:
        rest = suffix[:-1] if suffix[-1:] == (eos,) else suffix
        suffix = (*rest, eos) if config.adds("eos") else rest
    control = found.of_kind(vocabulary.CONTROL)
    ordinary = {text for text in vocabulary.END_TEXTS if text not in control}
    return LoadedVocabulary(
        vocabulary=found,
        encode=encode,
        bos_token_id=bos,
        eos_token_id=eos,
        eos_token_ids=mark_end_tokens(found, [eos, *config.end_ids()], ordinary),
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_space=strips_space,
        chat_templates=config.chat_templates,
        cuts=cuts,
    )
