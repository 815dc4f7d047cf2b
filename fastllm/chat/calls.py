"""Arguments of tool calls: an object, or its JSON text, as the template reads them.

OpenAI's messages have the text, Hugging Face's templates mostly want the object: they would write
the text as a JSON string inside JSON, or fail at ``arguments|items``. Some take only the text, and
would write Python's form of an object. A template is asked which of the two it writes as it is.
"""

from __future__ import annotations

import json
from typing import Any

from fastllm.chat.messages import plain_data

WORD = "Wq7Zk3"  # no template holds it
OBJECT = {WORD: 7}
TEXT = json.dumps(OBJECT)


def form(of_text: str, of_object: str) -> str:
    """Return the form that a template wants: "object", "text", or "any" (it takes both, or none).

    Parameters
    ----------
    of_text, of_object : str
        What it made of a call with `TEXT` and of one with `OBJECT` as arguments.
    """
    reads_text = TEXT in of_text
    reads_object = WORD in of_object and repr(OBJECT) not in of_object
    if reads_object and not (reads_text and TEXT in of_object):
        return "object"  # also where both are written, and not alike: the object is what it knows
    return "text" if reads_text and not reads_object else "any"


def with_arguments(message: dict[str, Any], form: str) -> dict[str, Any]:
    """Return a checked message whose tool calls have their arguments in this form, where they can.

    Parameters
    ----------
    form : str
        As of `form`; "any" changes nothing.
    """
    calls = message.get("tool_calls")
    if form == "any" or not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call(call, as_text=form == "text") for call in calls]}


def _call(call: Any, *, as_text: bool) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    changed = {**function, "arguments": _converted(function["arguments"], as_text=as_text)}
    return {**call, "function": changed} if "function" in call else changed


def _converted(arguments: Any, *, as_text: bool) -> Any:
    if as_text:
        is_text = isinstance(arguments, str)
        return arguments if is_text else json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return arguments  # a model's own mistake: the template shows it
    return plain_data(found, "a tool call's arguments") if isinstance(found, dict) else arguments


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
