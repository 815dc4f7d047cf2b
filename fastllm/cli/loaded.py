"""Load the model that a command names, with progress on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastllm.cli import notices
from fastllm.cli.progress import ProgressLine

if TYPE_CHECKING:
    from fastllm.llm import LLM


@contextlib.contextmanager
def loaded(
    model: str,
    *,
    n_threads: int | None = None,
    n_ctx: int | None = None,
    n_batch: int = 512,
    quant: str | None = None,
    kv_type: str | None = None,
) -> Iterator[LLM]:
    """Give the loaded model, and close it at the end."""
    from fastllm.llm import LLM

    with ProgressLine() as progress:
        llm = LLM(
            model,
            n_threads=n_threads,
            n_ctx=n_ctx,
            n_batch=n_batch,
            quant=quant,
            kv_type=kv_type,
            progress=progress,
        )
    if quant is not None:
        notices.quant(model, quant)
    notices.context(llm)
    with llm:
        yield llm
