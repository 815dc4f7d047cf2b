"""From a model's name to the parts an `LLM` is made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastllm.arguments import shown
from fastllm.environment import check_switches
from fastllm.errors import ModelNotFoundError, RequestError
from fastllm.hub.resolve import resolve, text_of
from fastllm.options import LoadOptions

if TYPE_CHECKING:
    from fastllm.chat.template import ChatTemplate
    from fastllm.engine import Runner
    from fastllm.formats.checkpoint import Checkpoint
    from fastllm.tokenizer.tokenizer import Tokenizer

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Parts:
    """A model ready to run, and what it was called; tokenizer and template may be None."""

    name: str
    runner: Runner
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None


def load(
    model: str | os.PathLike[str], options: LoadOptions, progress: Progress | None = None
) -> Parts:
    """Find, open and load a model; see `fastllm.LLM` for the errors."""
    from fastllm.chat.template import template_of
    from fastllm.step.runner import Runner
    from fastllm.tokenizer.tokenizer import tokenizer_of

    if not (progress is None or callable(progress)):
        raise RequestError(
            f"progress={shown(progress)}: must be a function of a label and a fraction, or None"
        )
    check_switches()
    checkpoint = open_model(model, progress)
    # Before the weights: an unknown tokenizer is found in milliseconds, not after the load.
    try:
        tokenizer = tokenizer_of(checkpoint)
    except ModelNotFoundError:
        tokenizer = None  # The model works with token ids; `LLM.tokenizer` says what is missing.
    template = template_of(checkpoint)
    runner = Runner(checkpoint, options, progress=progress)
    return Parts(text_of(model), runner, tokenizer, template)


def open_model(model: str | os.PathLike[str], progress: Progress | None = None) -> Checkpoint:
    """Find a model and open its headers.

    Raises
    ------
    RequestError
        It is a vocabulary without weights.
    FastLLMError
        As finding and opening do.
    """
    from fastllm.formats.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(resolve(model, progress=progress))
    if not checkpoint.tensors:
        raise RequestError(
            f"{checkpoint.path}: holds a vocabulary and no weights; only `fastllm tokenize` and "
            "LLM.tokenizer_of can use it"
        )
    return checkpoint


def load_tokenizer(model: str | os.PathLike[str]) -> Tokenizer:
    """Return a model's tokenizer alone."""
    from fastllm.formats.checkpoint import open_checkpoint
    from fastllm.tokenizer.tokenizer import tokenizer_of

    return tokenizer_of(open_checkpoint(resolve(model), weights=False))
