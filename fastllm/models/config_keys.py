"""Parts of a config that several families spell alike: activations, heads, token ids, windows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastllm.config import ModelConfig
from fastllm.errors import FormatError, UnsupportedError
from fastllm.models.keys import MAX_VOCAB, Keys, shown

# Spellings of hidden_act in config.json, to the names of `fastllm.models.layers.MLP`.
HIDDEN_ACTS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}


def activation(keys: Keys, *names: str, default: str) -> str:
    """Return the activation that a config asks for, in our spelling.

    Raises
    ------
    UnsupportedError
        Another activation than those built, named.
    """
    name = keys.text(*names, default=default)
    if name not in HIDDEN_ACTS:
        raise UnsupportedError(
            f"{keys.where}: {keys.find(names)[0]} is {shown(name)}, which is not built; "
            f"built: {', '.join(sorted(HIDDEN_ACTS))}"
        )
    return HIDDEN_ACTS[name]


def gguf_activation(keys: Keys, default: str) -> str:
    """Return the activation of a GGUF model.

    It is our key ``fastllm.hidden_act``, llama.cpp's ``{arch}.hidden_activation``, or the family's.
    """
    own = activation(keys, "hidden_activation", default=default)
    return activation(Keys(keys.values, keys.where, "fastllm."), "hidden_act", default=own)


def check_heads(where: str, num_heads: int, num_kv_heads: int) -> None:
    """Refuse head counts that cannot share keys and values evenly."""
    if num_heads % num_kv_heads:
        raise FormatError(
            f"{where}: {num_heads} attention heads cannot share {num_kv_heads} key/value heads"
        )


def head_size(keys: Keys, hidden_size: int, num_heads: int, *names: str) -> int:
    """Return the size of a head: the file's own, else ``hidden_size / num_heads``."""
    if keys.has(*names):
        return keys.integer(*names)
    if hidden_size % num_heads:
        raise FormatError(
            f"{keys.where}: hidden size {hidden_size} is no multiple of {num_heads} heads"
        )
    return hidden_size // num_heads


def hf_tokens(keys: Keys) -> tuple[int | None, tuple[int, ...]]:
    """Return ``bos_token_id`` and all of ``eos_token_id`` (a number or a list of them)."""
    bos = None
    if keys.has("bos_token_id"):
        bos = keys.integer("bos_token_id", low=-1, high=MAX_VOCAB)
    ends: tuple[int, ...] = ()
    if isinstance(keys.find(("eos_token_id",))[1], (list, tuple)):
        values = keys.sequence("eos_token_id")
        length = len(values)
        ends = tuple(
            int(n) for n in keys.numbers("eos_token_id", length=length, low=-1, high=MAX_VOCAB)
        )
    elif keys.has("eos_token_id"):
        ends = (keys.integer("eos_token_id", low=-1, high=MAX_VOCAB),)
    # Some configs write -1 for "none".
    return (None if bos == -1 else bos), tuple(end for end in ends if end >= 0)


def gguf_tokens(keys: Keys) -> tuple[int | None, tuple[int, ...]]:
    """Return the ids that begin and end a text, from ``tokenizer.ggml.*``."""
    tokens = Keys(keys.values, keys.where, "tokenizer.ggml.")
    ids = {
        name: tokens.integer(f"{name}_token_id", low=-1, high=(1 << 32) - 1)
        for name in ("bos", "eos", "eot", "eom")
        if tokens.has(f"{name}_token_id")
    }
    # -1 is "none", and so is the largest 32-bit number, which is what it is without a sign.
    ids = {name: token for name, token in ids.items() if 0 <= token < MAX_VOCAB}
    ends = (ids[name] for name in ("eos", "eot", "eom") if name in ids)
    return ids.get("bos"), tuple(dict.fromkeys(ends))


def gguf_vocab_size(keys: Keys) -> int:
    """Return the size of the vocabulary: the tokenizer's list, else ``{arch}.vocab_size``."""
    tokens = keys.values.get("tokenizer.ggml.tokens")
    if tokens is not None:
        length = len(Keys(keys.values, keys.where).sequence("tokenizer.ggml.tokens"))
        if length:
            return length
    return keys.integer("vocab_size", high=MAX_VOCAB)


def sizes_to_gguf(config: ModelConfig) -> dict[str, object]:
    """Return the sizes that every GGUF file states, without the architecture's prefix."""
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


def prefixed(
    keys: Mapping[str, object], architecture: str, hidden_act: str, default: str
) -> dict[str, object]:
    """Return GGUF keys with their prefix, the architecture before them, an unusual act behind."""
    named: dict[str, object] = {"general.architecture": architecture}
    named |= {f"{architecture}.{key}": value for key, value in keys.items()}
    if hidden_act != default:
        named["fastllm.hidden_act"] = hidden_act
    return named


def sliding_layers_from_hf(
    keys: Keys, num_layers: int, default: list[bool], window: int | None
) -> tuple[bool, ...]:
    """Return which layers slide: ``layer_types`` if present, else `default`.

    Without a window none may: what such a layer then sees is not said.
    """
    types = keys.sequence("layer_types")
    if not types:
        return tuple(default)
    if window is None:
        check_layer_types(keys, "full_attention")
    if len(types) != num_layers:
        raise FormatError(
            f"{keys.where}: layer_types has {len(types)} entries for {num_layers} layers"
        )
    for name in types:
        if name not in ("sliding_attention", "full_attention"):
            raise UnsupportedError(
                f"{keys.where}: layer_types has {shown(name)}, which is not built; "
                "built: sliding_attention, full_attention"
            )
    return tuple(name == "sliding_attention" for name in types)


def check_layer_types(keys: Keys, built: str) -> None:
    """Refuse ``layer_types`` with another entry than the one kind of layers that a model has."""
    for name in keys.sequence("layer_types"):
        if name != built:
            raise UnsupportedError(
                f"{keys.where}: layer_types has {shown(name)}, which is not built in this model; "
                f"built: {built}"
            )


def sliding_layers_from_gguf(keys: Keys, num_layers: int, pattern: int) -> tuple[bool, ...]:
    """Return which layers slide: of `pattern` layers the last one sees everything; 0: all slide.

    ``attention.sliding_window_pattern`` may give another number, or one flag per layer.
    """
    key = "attention.sliding_window_pattern"
    if isinstance(keys.find((key,))[1], (list, tuple, np.ndarray)):
        flags = keys.sequence(key)
        if len(flags) < num_layers:
            raise FormatError(
                f"{keys.where}: {keys.prefix}{key} has {len(flags)} entries for {num_layers} layers"
            )
        for flag in flags:
            if flag not in (0, 1):
                raise keys.error(keys.prefix + key, flag, "true or false for each layer")
        return tuple(bool(flag) for flag in flags[:num_layers])
    pattern = keys.integer(key, default=pattern, low=0)
    return tuple(pattern == 0 or i % pattern < pattern - 1 for i in range(num_layers))
