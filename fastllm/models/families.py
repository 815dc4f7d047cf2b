"""Which family a model is of: one table from the strings in files to the family's file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fastllm.config import ModelConfig
from fastllm.errors import UnsupportedError
from fastllm.models import (
    falcon,
    gemma2,
    gemma3,
    llama,
    mistral,
    opt,
    phi3,
    qwen2,
    qwen3,
)
from fastllm.models.keys import Keys, shown
from fastllm.models.layers import Decoder
from fastllm.models.names import Names


@dataclass(frozen=True, eq=False)
class Family:
    """What a family's file exports.

    Attributes
    ----------
    config_from_hf : callable
        config.json, decoded, to the family's config.
    config_from_gguf : callable
        GGUF metadata and the names of the tensors to the same config.
    config_to_gguf : callable
        That config to GGUF metadata, which `config_from_gguf` reads back.
    decoder : callable
        That config and "hf" or "gguf" to the layers.
    names : Names
        Roles to names in files.
    gguf_architecture : str
        Value of ``general.architecture``.
    """

    config_from_hf: Callable[[Mapping[str, object]], ModelConfig]
    config_from_gguf: Callable[[Mapping[str, object], Collection[str]], ModelConfig]
    # These take the config class of their own family, hence Any.
    config_to_gguf: Callable[[Any], dict[str, object]]
    decoder: Callable[[Any, str], Decoder]
    names: Names
    gguf_architecture: str


def _family(module: Any) -> Family:
    return Family(
        module.config_from_hf,
        module.config_from_gguf,
        module.config_to_gguf,
        module.decoder,
        module.NAMES,
        module.GGUF_ARCHITECTURE,
    )


LLAMA = _family(llama)
MISTRAL = _family(mistral)
QWEN2 = _family(qwen2)
QWEN3 = _family(qwen3)
GEMMA2 = _family(gemma2)
GEMMA3 = _family(gemma3)
PHI3 = _family(phi3)
FALCON = _family(falcon)
OPT = _family(opt)

# Entries of `architectures` in config.json.
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "LLaMAForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
    "Phi3ForCausalLM": PHI3,
    "FalconForCausalLM": FALCON,
    "RWForCausalLM": FALCON,
    "OPTForCausalLM": OPT,
}
# `model_type` in config.json, for configs without `architectures`.
MODEL_TYPES = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "phi3": PHI3,
    "falcon": FALCON,
    "RefinedWeb": FALCON,
    "RefinedWebModel": FALCON,
    "opt": OPT,
}
# `general.architecture` in GGUF files; mistral's are "llama".
GGUF_ARCHITECTURES = {
    family.gguf_architecture: family
    for family in (LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, FALCON, OPT)
}


def family_of_hf(config: Mapping[str, object]) -> Family:
    """Return the family of a config.json.

    Raises
    ------
    FormatError
        Neither ``architectures`` nor ``model_type`` is there, or not as strings.
    UnsupportedError
        The family is not built; names it.
    """
    keys = Keys(config, "config.json")
    names = keys.sequence("architectures")
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            other = config.get("model_type")
            if (
                isinstance(other, str)
                and MODEL_TYPES.get(other, ARCHITECTURES[name]) != (ARCHITECTURES[name])
            ):
                raise UnsupportedError(
                    f"config.json: architectures is {shown(name)} and model_type {shown(other)}, "
                    "which are not of one family; correct the one that is wrong"
                )
            return ARCHITECTURES[name]
    if names:
        key, name, built = "architectures", ", ".join(shown(name) for name in names), ARCHITECTURES
    else:
        model_type = keys.text("model_type")
        if model_type in MODEL_TYPES:
            return MODEL_TYPES[model_type]
        key, name, built = "model_type", repr(model_type), MODEL_TYPES
    raise UnsupportedError(
        f"config.json: {key} is {name}, which is not built; built: {', '.join(sorted(built))}"
    )


def family_of_gguf(metadata: Mapping[str, object]) -> Family:
    """Return the family of a GGUF file's metadata.

    Raises
    ------
    FormatError
        ``general.architecture`` is missing or no string.
    UnsupportedError
        The family is not built; names it.
    """
    name = Keys(metadata, "GGUF metadata").text("general.architecture")
    if name not in GGUF_ARCHITECTURES:
        raise UnsupportedError(
            f"GGUF metadata: general.architecture is {shown(name)}, which is not built; "
            f"built: {', '.join(sorted(GGUF_ARCHITECTURES))}"
        )
    return GGUF_ARCHITECTURES[name]
