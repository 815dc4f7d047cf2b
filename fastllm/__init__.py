"""Language models on ordinary CPUs.

::

    from fastllm import LLM, SamplingParams

    with LLM("smollm2") as llm:
        print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)

Public names are loaded on first use, so that ``import fastllm`` and ``fastllm --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastllm.answers import Answer, Stream
    from fastllm.async_answers import AsyncStream
    from fastllm.errors import (
        AnswerTimeoutError,
        BudgetError,
        ContextLengthError,
        DownloadError,
        FastLLMError,
        FormatError,
        KernelError,
        KVRangeError,
        ModelNotFoundError,
        ReadError,
        RequestError,
        UnsupportedError,
    )
    from fastllm.llm import LLM
    from fastllm.request import Chunk, Completion, SamplingParams, Timings, TokenLogprob

__version__ = "0.1.0"

_HOMES = {
    "fastllm.answers": ("Answer", "Stream"),
    "fastllm.async_answers": ("AsyncStream",),
    "fastllm.errors": (
        "AnswerTimeoutError",
        "BudgetError",
        "ContextLengthError",
        "DownloadError",
        "FastLLMError",
        "FormatError",
        "KVRangeError",
        "KernelError",
        "ModelNotFoundError",
        "ReadError",
        "RequestError",
        "UnsupportedError",
    ),
    "fastllm.llm": ("LLM",),
    "fastllm.request": ("Chunk", "Completion", "SamplingParams", "Timings", "TokenLogprob"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LLM",
    "Answer",
    "AnswerTimeoutError",
    "AsyncStream",
    "BudgetError",
    "Chunk",
    "Completion",
    "ContextLengthError",
    "DownloadError",
    "FastLLMError",
    "FormatError",
    "KVRangeError",
    "KernelError",
    "ModelNotFoundError",
    "ReadError",
    "RequestError",
    "SamplingParams",
    "Stream",
    "Timings",
    "TokenLogprob",
    "UnsupportedError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastllm' has no attribute {name!r}")
    from fastllm.forks import Imports

    with Imports():
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
