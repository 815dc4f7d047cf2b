"""What a conversation may look like: checked, and copied into plain data for the template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastllm.errors import RequestError

_MAX_DEPTH = 64


def checked_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as new dicts with string contents.

    Raises
    ------
    RequestError
        There is none, or one is malformed; the text says which.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise RequestError('messages must be a list of {"role": ..., "content": ...}')
    result = [_checked(message, i) for i, message in enumerate(messages)]
    if not result:
        raise RequestError("messages is empty; a conversation needs at least one")
    return result


def _checked(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object, not {type(message).__name__}")
    copy: dict[str, Any] = plain_data(dict(message), where)
    role = copy.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{where} needs a role such as 'user', found {role!r}")
    content = copy.get("content")
    if isinstance(content, list):
        copy["content"] = content = "".join(_part_text(part, where) for part in content)
    may_be_empty = content is None and copy.get("tool_calls")
    if not isinstance(content, str) and not may_be_empty:
        raise RequestError(f"{where} needs a string as content, found {type(content).__name__}")
    return copy


def _part_text(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RequestError(f"{where} has a content part of type {kind!r}; only text parts are built")


def plain_data(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy made of dict, list, str, int, float, bool and None alone.

    A template can call methods of what it is given, so nothing else is handed to it.

    Raises
    ------
    RequestError
        Something else is inside, or it is nested too deeply.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == _MAX_DEPTH:
        raise RequestError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{where} has a key that is not a string")
        return {str(k): plain_data(v, f"{where}.{k}"[:80], depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(v, where, depth + 1) for v in value]
    if isinstance(value, str):
        return str(value)
    raise RequestError(f"{where} holds a {type(value).__name__}; only JSON data can be rendered")
