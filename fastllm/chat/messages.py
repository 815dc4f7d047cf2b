"""What a conversation may look like: checked, and copied into plain data for the template."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastllm.arguments import shown
from fastllm.errors import RequestError

_MAX_DEPTH = 64
_SHAPE = 'messages must be a list of {"role": ..., "content": ...}'

# Names that a message's reasoning goes by; the first is the one that most templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def checked_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as new dicts, as transformers prepares them for a template.

    Keys whose value is None are left out: OpenAI's shape has ``"content": None`` beside tool calls,
    and a template would write the word. Reasoning is handed on under the names that templates read.
    A content is a str or a list of text parts.

    Raises
    ------
    RequestError
        There is none, or one is malformed; the text says which.
    """
    if not _is_list(messages):
        raise RequestError(f"{_SHAPE}, not {shown(messages)}")
    result = [_checked(message, i) for i, message in enumerate(messages)]
    if not result:
        raise RequestError("messages is empty; a conversation needs at least one")
    return result


def checked_tools(tools: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the tools as new dicts; None stays None.

    Raises
    ------
    RequestError
        One is not a JSON object of OpenAI's shape.
    """
    if tools is None:
        return None
    if not _is_list(tools):
        raise RequestError(f"tools must be a list of JSON schemas of functions, not {shown(tools)}")
    return [_checked_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _is_list(value: object) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return False
    return getattr(value, "ndim", None) != 0  # NumPy's scalars say that they are iterable


def _checked_tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise RequestError(f"{where} must be the JSON schema of a function, not {shown(tool)}")
    copy: dict[str, Any] = plain_data(tool, where)
    function = copy.get("function", copy)  # OpenAI's shape, or the bare function
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(
            f'{where} needs a name: {{"type": "function", "function": {{"name": ..., '
            '"description": ..., "parameters": {...}}}'
        )
    return copy


def _checked(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    found = plain_data(message, where)
    if not isinstance(found, dict):
        raise RequestError(f"{where} must be an object, not {type(message).__name__}")
    copy = {key: value for key, value in found.items() if value is not None}
    reasoning = next((copy[key] for key in _REASONING if key in copy), None)
    if reasoning is not None:
        copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
    role = copy.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{where} needs a role such as 'user', found {shown(role)}")
    content = copy.get("content")
    if isinstance(content, list):
        for part in content:
            _check_part(part, where)
    elif not isinstance(content, str) and not (
        content is None and (copy.get("tool_calls") or reasoning)
    ):
        raise RequestError(f"{where} needs a string as content, found {type(content).__name__}")
    return copy


def _check_part(part: object, where: str) -> None:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RequestError(
        f"{where} has a content part of type {shown(kind)}; only text parts are built"
    )


def joined(message: dict[str, Any]) -> dict[str, Any]:
    """Return a checked message with its text parts joined to one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def plain_data(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy made of dict, list, str, int, float, bool and None alone.

    A template can call methods of what it is given, so nothing else is handed to it. NumPy's
    numbers, dataclasses and pydantic's models are brought to that form.

    Raises
    ------
    RequestError
        Something else is inside, or it is nested too deeply.
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RequestError(f"{where} holds {value!r}; only JSON data can be rendered")
        return float(value)
    if depth == _MAX_DEPTH:
        raise RequestError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{where} has a key that is not a string")
        items = ((str.__str__(key), item) for key, item in value.items())  # of an enum its value
        return {k: plain_data(v, f"{where}.{k}"[:80], depth + 1) for k, v in items}
    if isinstance(value, (list, tuple)):
        return [plain_data(v, where, depth + 1) for v in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain_data(fields, where, depth + 1)
    for method in ("model_dump", "tolist"):  # pydantic, numpy
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            return plain_data(convert(), where, depth + 1)
    raise RequestError(f"{where} holds a {type(value).__name__}; only JSON data can be rendered")
