"""What callers may hand in as a prompt, brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from typing import Any

from fastllm.errors import RequestError
from fastllm.request import SamplingParams

Prompt = str | ListLike[int]
Message = Mapping[str, Any]


def prompt_list(prompts: Prompt | ListLike[Prompt]) -> list[Prompt]:
    """Return what `LLM.generate` was given as a list of prompts.

    Raises
    ------
    RequestError
        An item is neither a text nor a list of token ids.
    """
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    if items and all(hasattr(i, "__index__") and not hasattr(i, "__iter__") for i in items):
        return [items]  # one prompt of token ids
    for item in items:
        if not isinstance(item, str) and not hasattr(item, "__iter__"):
            raise RequestError(f"a prompt is a text or a list of token ids, not {item!r}")
    return items


def params_list(
    params: SamplingParams | ListLike[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """Return one `SamplingParams` for each of `count` prompts.

    Raises
    ------
    RequestError
        There are more or fewer than that.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"{len(params)} sampling params for {count} prompts: give one for each")
    return list(params)


def shielded(value: Any, shield: Callable[[str], str]) -> Any:
    """Return a message with every text in it shielded, except what names its role or type."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {k: v if k in ("role", "type") else shielded(v, shield) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shielded(v, shield) for v in value]
    return value
