"""What ``run`` hands to a chat template besides the messages: --tools and --template-arg."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fastllm.cli import text_input
from fastllm.errors import RequestError


@dataclass(frozen=True)
class TemplateInput:
    """Keywords of `LLM.chat`; `keywords` are empty where nothing was asked.

    Attributes
    ----------
    tools : list or None
    template_args : dict
    """

    tools: list[dict[str, Any]] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        """Return them for a call of `LLM.chat`."""
        return {"tools": self.tools, "template_args": self.template_args or None}

    def __bool__(self) -> bool:
        return self.tools is not None or bool(self.template_args)


def read(tools_file: str | None, args: Iterable[str]) -> TemplateInput:
    """Return what the options name.

    Raises
    ------
    ReadError, RequestError
        The file cannot be read or holds no list of tools; an argument is not NAME=VALUE.
    """
    from fastllm.chat.messages import checked_tools

    tools = None
    if tools_file is not None:
        try:
            found = json.loads(text_input.file(tools_file))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"--tools {tools_file}: not JSON ({error})") from error
        try:
            tools = checked_tools([found] if isinstance(found, dict) else found)
        except RequestError as error:
            raise RequestError(f"--tools {tools_file}: {error}") from error
    return TemplateInput(tools, dict(map(_named, args)))


def _named(arg: str) -> tuple[str, Any]:
    name, equals, value = text_input.argument(arg).partition("=")
    if not equals or not name.isidentifier():
        raise RequestError(f"--template-arg {arg}: must be NAME=VALUE, as enable_thinking=false")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value  # a bare word is a text
