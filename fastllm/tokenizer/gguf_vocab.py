"""The vocabulary in a GGUF file's metadata, made into an object of the tokenizer libraries.

``tokenizer.ggml.model`` says which: "gpt2" is byte-level BPE, "gemma4" BPE over UTF-8, "llama"
sentencepiece's BPE by scores, "bert" WordPiece. Other models (t5, rwkv, plamo2, ...) are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from fastllm.errors import FormatError, UnsupportedError
from fastllm.tokenizer import pre, sentencepiece_model, vocabulary
from fastllm.tokenizer.fragments import LibraryFragments
from fastllm.tokenizer.loaded import LoadedVocabulary
from fastllm.tokenizer.special import Cuts, Place, SpecialSplitter, SplittingEncoder
from fastllm.tokenizer.vocabulary import Vocabulary, mark_end_tokens

log = logging.getLogger(__name__)

KEY = "tokenizer.ggml."
OWN_KEY = "fastllm.tokenizer."  # what we write beside it; `to_gguf` says what they mean
CUT_KEYS = ("lstrip", "rstrip", "single_word")
ENDS = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # besides EOS
MODELS = ("gpt2", "gemma4", "llama", "bert")


def load_gguf(metadata: Mapping[str, Any]) -> LoadedVocabulary:
    """Build the tokenizer that a GGUF file describes.

    Parameters
    ----------
    metadata : mapping
        Keys and values of the file; arrays as lists or NumPy arrays.

    Raises
    ------
    UnsupportedError
        The kind of vocabulary, or its way to split words, is not built.
    FormatError
        Keys are missing or contradict each other.
    """
    model = metadata.get(KEY + "model")
    if model not in MODELS:
        raise UnsupportedError(
            f"tokenizer.ggml.model = {str(model)[:80]!r} is not built; built: {', '.join(MODELS)}"
        )
    found = _read_tokens(metadata, byte_level=model == "gpt2")
    bos = _token_id(metadata, "bos_token_id", 1 if model == "llama" else None, found)
    eos = _token_id(metadata, "eos_token_id", 2 if model == "llama" else None, found)
    if model == "bert":
        bos = _token_id(metadata, "cls_token_id", bos, found)
    if KEY + "token_type" not in metadata:
        _make_markers(metadata, found, (bos, eos))  # or they would be shown, and made out of text
    declared = [eos, *(_token_id(metadata, f"{name}_token_id", None, found) for name in ENDS)]
    ends = mark_end_tokens(found, declared, _ordinary(metadata, found))
    _make_markers(metadata, found, declared)
    add_bos, add_space = model in ("llama", "gemma4"), model == "llama"
    metaspace = metadata.get(OWN_KEY + "metaspace")
    suffix: tuple[int, ...] = ()
    if model == "llama":
        add_space = _flag(metadata, "add_space_prefix", True)
        scores = [0.0] * len(found.tokens)  # as ggml has it, where the file gives none
        if KEY + "scores" in metadata:
            scores = _numbers(metadata, "scores", len(found.tokens))
        way = ("behind" if add_space else "never") if metaspace is None else str(metaspace)
        fragment = sentencepiece_model.fragment_encoder(found, scores, way)
    elif model == "bert":
        fragment = _wordpiece(metadata, found)
        sep = _token_id(metadata, "seperator_token_id", 102, found)  # the format's own spelling
        add_bos, suffix = True, () if sep is None else (sep,)
    else:
        rule = _pre_rule(metadata, str(model))
        found.byte_level = rule.byte_level
        add_bos = add_bos or rule.add_bos
        fragment = _bpe(metadata, found, rule)
    add_bos = _flag(metadata, "add_bos_token", add_bos)
    if _flag(metadata, "add_eos_token", False) and eos is not None:
        suffix = (eos,)
    always = found.of_kind(vocabulary.USER_DEFINED)
    control = found.of_kind(vocabulary.CONTROL, vocabulary.UNKNOWN)
    cuts = _cuts(metadata, found, always | control)
    encoder = SplittingEncoder(
        SpecialSplitter(always, cuts), SpecialSplitter(always | control, cuts), fragment
    )
    return LoadedVocabulary(
        vocabulary=found,
        encode=encoder.encode,
        bos_token_id=bos,
        eos_token_id=eos,
        eos_token_ids=ends,
        prefix_ids=(bos,) if add_bos and bos is not None else (),
        suffix_ids=suffix,
        strips_space=add_space or bool(found.continuation),
        chat_templates=_chat_templates(metadata),
        cuts=cuts,
    )


def _read_tokens(metadata: Mapping[str, Any], byte_level: bool) -> Vocabulary:
    tokens = _strings(metadata, "tokens")
    if "" in tokens:
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        twice = next(text for i, text in enumerate(tokens) if ids[text] != i)
        raise FormatError(f"tokenizer.ggml.tokens holds {twice[:80]!r} twice; ids must be unique")
    kinds = bytearray([vocabulary.NORMAL]) * len(tokens)
    if KEY + "token_type" in metadata:
        numbers = _numbers(metadata, "token_type", len(tokens))
        if float in set(map(type, numbers)):
            raise FormatError("tokenizer.ggml.token_type holds kinds that are none")
        kinds = bytearray(kind if 0 <= kind <= vocabulary.BYTE else 0 for kind in numbers)
    if not byte_level:
        for place, kind in enumerate(kinds):
            if kind == vocabulary.BYTE and not vocabulary.BYTE_TOKEN.fullmatch(tokens[place]):
                kinds[place] = vocabulary.NORMAL
    if not byte_level and vocabulary.BYTE not in kinds:
        for b in range(256):
            i = ids.get(f"<0x{b:02X}>")
            if i is not None and kinds[i] == vocabulary.NORMAL:
                kinds[i] = vocabulary.BYTE
    return Vocabulary(tokens, kinds, ids, byte_level)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(KEY + key)
    if not isinstance(value, list) or not value:
        raise FormatError(f"tokenizer.ggml.{key} is missing or empty; the vocabulary needs it")
    if set(map(type, value)) != {str}:
        raise FormatError(f"tokenizer.ggml.{key} is not an array of strings")
    try:
        "".join(value).encode()
    except UnicodeEncodeError:
        i = next(i for i, text in enumerate(value) if not text.isprintable() and _is_broken(text))
        raise FormatError(f"tokenizer.ggml.{key}: string {i} is not UTF-8") from None
    return value


def _is_broken(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[Any]:
    """Return the first `count` entries of an array of numbers (a list or a NumPy array)."""
    value: Any = metadata.get(KEY + key)
    value = value.tolist() if hasattr(value, "tolist") else value
    length = len(value) if isinstance(value, list) else 0
    if not isinstance(value, list) or length < count:
        raise FormatError(f"tokenizer.ggml.{key} has {length} entries for {count} tokens")
    if not set(map(type, value)) <= {int, float}:
        raise FormatError(f"tokenizer.ggml.{key} is not an array of numbers")
    return value[:count]


def _token_id(
    metadata: Mapping[str, Any], key: str, default: int | None, found: Vocabulary
) -> int | None:
    """Return an id the file names; one outside the vocabulary (-1, for one) names none."""
    value = metadata.get(KEY + key, default)
    return value if type(value) is int and 0 <= value < len(found.tokens) else None


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(KEY + key, default)
    if not isinstance(value, int) or value not in (0, 1):
        raise FormatError(f"tokenizer.ggml.{key} is {str(value)[:40]!r}, expected true or false")
    return bool(value)


def _make_markers(
    metadata: Mapping[str, Any], found: Vocabulary, ids: Iterable[int | None]
) -> None:
    """Make control tokens of those that the file names, whatever kind it says they are.

    But for what ordinary text is made of, such as a line's end that ends the answer: without it
    prompts could not hold it.
    """
    named = {i for i in ids if i is not None and found.kinds[i] != vocabulary.BYTE}
    ordinary = {found.tokens[i] for i in named if found.kinds[i] == vocabulary.NORMAL}
    text = _merged(metadata, ordinary) | {text for text in ordinary if len(text) == 1}
    for i in named:
        if found.tokens[i] not in text:
            found.kinds[i] = vocabulary.CONTROL


def _merged(metadata: Mapping[str, Any], texts: Set[str]) -> Set[str]:
    """Return those of `texts` that the file's merges make."""
    lines = metadata.get(KEY + "merges")
    if not texts or not isinstance(lines, list):
        return set()
    lengths = {len(text) + 1 for text in texts}  # a merge line has a space more
    return texts & {
        line.replace(" ", "", 1) for line in lines if isinstance(line, str) and len(line) in lengths
    }


def _pre_rule(metadata: Mapping[str, Any], model: str) -> pre.PreRule:
    name = "gemma4" if model == "gemma4" else metadata.get(KEY + "pre")
    if not name:
        log.warning("tokenizer.ggml.pre is missing; words are split by the format's default rule")
        name = "default"
    return pre.pre_rule(str(name))


def _ordinary(metadata: Mapping[str, Any], found: Vocabulary) -> Set[str]:
    """Return the end texts that end nothing: they only look like control tokens.

    A file with ``token_type`` says what is a control token (Gemma has an HTML ``</s>`` that is
    none); in one without it, an ordinary token is what merging can make.
    """
    if KEY + "token_type" in metadata:
        return set(vocabulary.END_TEXTS) - found.of_kind(vocabulary.CONTROL).keys()
    suspects = {
        text
        for text in vocabulary.END_TEXTS
        if text in found.ids and found.kinds[found.ids[text]] == vocabulary.NORMAL
    }
    return _merged(metadata, suspects)


def _bpe(
    metadata: Mapping[str, Any], found: Vocabulary, rule: pre.PreRule
) -> Callable[[str, Place], list[int]]:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    hidden = (vocabulary.CONTROL, vocabulary.UNKNOWN)
    ids = found.ids.copy()
    for text in found.of_kind(*hidden):
        del ids[text]  # never made by merging user text
    merges = _merges(_strings(metadata, "merges"))
    options: dict[str, Any] = {"ignore_merges": rule.ignore_merges}
    if not rule.byte_level:
        options["byte_fallback"] = True
    try:
        model = models.BPE(ids, merges, **options)
    except Exception:  # noqa: BLE001  the library raises bare Exception for a merge of unknown tokens
        model = models.BPE(ids, _merges_within(ids, merges), **options)
    tokenizer = Tokenizer(model)
    cuts: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns
    ]
    if metadata.get(OWN_KEY + "normalizer") == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    if rule.byte_level:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", vocabulary.SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return LibraryFragments(tokenizer)


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    """Cut each line at its first space; a line may itself begin with one that is no cut.

    A line that is no pair merges nothing; ggml passes over it, too.
    """
    pairs = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not left:
            left, _, right = line[1:].partition(" ")
            left = " " + left
        if right:
            pairs.append((left, right))
    return pairs


def _merges_within(ids: Mapping[str, int], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop merges that touch a control token, and those of no token at all: nothing uses them."""
    return [
        (left, right)
        for left, right in merges
        if left in ids and right in ids and left + right in ids
    ]


def _wordpiece(metadata: Mapping[str, Any], found: Vocabulary) -> Callable[[str, Place], list[int]]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    # GGUF marks the start of a word with U+2581; the library marks the continuation.
    found.continuation = "##"
    for i, text in enumerate(found.tokens):
        if found.kinds[i] != vocabulary.NORMAL or (text.startswith("[") and text.endswith("]")):
            continue
        found.tokens[i] = text[1:] if text.startswith(vocabulary.SPACE) else "##" + text
    found.ids = {text: i for i, text in enumerate(found.tokens)}
    unknown = _token_id(metadata, "unknown_token_id", 100, found)
    if unknown is None:
        raise FormatError("tokenizer.ggml.unknown_token_id is missing; WordPiece needs it")
    lowercase = _flag(metadata, "normalizer.lowercase", True)
    tokenizer = Tokenizer(models.WordPiece(found.ids, unk_token=found.tokens[unknown]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return LibraryFragments(tokenizer)


def _cuts(metadata: Mapping[str, Any], found: Vocabulary, specials: Mapping[str, int]) -> Cuts:
    """Return how special tokens want to be cut out; only files that we wrote say it themselves."""
    own = {name: metadata.get(OWN_KEY + name) for name in CUT_KEYS}
    if all(ids is None for ids in own.values()):
        return Cuts(rstrip=_phi3_eaters(metadata, found, specials))
    return Cuts(**{name: frozenset(_own_ids(name, ids)) for name, ids in own.items()})


def _own_ids(name: str, ids: Any) -> list[int]:
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if ids is None:
        return []
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise FormatError(f"{OWN_KEY}{name} is not an array of token ids")
    return ids


def _phi3_eaters(
    metadata: Mapping[str, Any], found: Vocabulary, specials: Mapping[str, int]
) -> frozenset[int]:
    """Return the special tokens that swallow white space behind them.

    GGUF has no key for it; Phi-3's own tokenizer has it for all but three of its special tokens,
    and its prompts are wrong without it.
    """
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    kept = {found.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    return frozenset(i for i in specials.values() if i not in kept)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {
        key[len(prefix) + 1 :] or "default": value
        for key, value in metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
    }
    return templates
