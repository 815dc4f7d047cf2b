"""Small vocabularies made on the spot, with the libraries' own objects to compare with."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? I'll say it's 12345 times.",
    "Why is the sky blue? Because shorter waves are scattered more than longer ones.",
    'for (int i = 0; i < 10; ++i) {\n    printf("%d\\n", i);\n}\n\n',
    "Größe, naïve café, ¿qué tal? Привет, мир! こんにちは世界 你好 안녕하세요 🦙🚀",
    "it's we're they've I'm he'd she'll don't   spaced    out\t\ttabs",
] * 3
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NORMAL, UNKNOWN, CONTROL_KIND, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@cache
def byte_level() -> Tokenizer:
    """GPT-2's kind of tokenizer, trained on the corpus, specials first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def _byte_level_parts() -> tuple[list[str], list[str]]:
    import json

    state = json.loads(byte_level().to_str())["model"]
    tokens = [text for text, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    return tokens, [" ".join(pair) for pair in state["merges"]]


def gpt2_metadata(pre: str = "gpt-2", **extra: Any) -> dict[str, Any]:
    """The same vocabulary as a GGUF file would hold it."""
    tokens, merges = _byte_level_parts()
    kinds = [CONTROL_KIND if text in CONTROL else NORMAL for text in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in extra.items()}


@cache
def spm_proto(add_dummy_prefix: bool = True, user_defined: str = "") -> bytes:
    """A sentencepiece BPE model with byte fallback, trained on the corpus."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n")]),
        model_writer=writer,
        model_type="bpe",
        vocab_size=480,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=user_defined,
        minloglevel=2,
    )
    return writer.getvalue()


@cache
def spm(add_dummy_prefix: bool = True, user_defined: str = "") -> Any:
    proto = spm_proto(add_dummy_prefix, user_defined)
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def spm_metadata(add_dummy_prefix: bool = True, **extra: Any) -> dict[str, Any]:
    """The same vocabulary as a GGUF file would hold it."""
    library = spm(add_dummy_prefix)
    size = library.get_piece_size()

    def kind(i: int) -> int:
        if library.is_control(i):
            return CONTROL_KIND
        if library.is_unknown(i):
            return UNKNOWN
        return BYTE if library.is_byte(i) else NORMAL

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [library.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(size)],
        "tokenizer.ggml.add_space_prefix": add_dummy_prefix,
    } | {f"tokenizer.ggml.{key}": value for key, value in extra.items()}
