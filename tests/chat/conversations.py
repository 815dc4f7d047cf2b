"""Conversations, and what is given beside them, for the renderings of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "renderings"
EXPECTED = FOLDER / "expected.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'How is it <outside>? "now" & here',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Größe\nzählt"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": ["integer", "null"]}},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}


def call(name: str, arguments: Any, call_id: str = "abc123xyz") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


PLAIN = [said("user", " Hi é\r\n"), said("assistant", "\nHello "), said("user", "Why?")]
TOOL_TALK = [
    said("system", "Be brief."),
    said("user", "Weather?"),
    said("assistant", None, tool_calls=[call("weather", {"city": "Zürich", "days": [1, None]})]),
    said("tool", '{"t": 21}', tool_call_id="abc123xyz", name="weather"),
]
PARTS = [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]

#: Name to messages, tools and variables.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": PLAIN},
    "system": {"messages": [said("system", "Be <b>brief</b> & kind."), *PLAIN]},
    "closed": {"messages": PLAIN[:2], "add_generation_prompt": False},
    "tools offered": {"messages": PLAIN, "tools": [WEATHER, TIME]},
    "a call": {"messages": TOOL_TALK[:3], "tools": [WEATHER]},
    "a call answered": {"messages": TOOL_TALK, "tools": [WEATHER]},
    "two answers": {
        "messages": [
            *TOOL_TALK[:2],
            said("assistant", "", tool_calls=[call("weather", {}), call("now", {}, "123456789")]),
            said("tool", "21", tool_call_id="abc123xyz"),
            said("tool", "noon", tool_call_id="123456789"),
            said("assistant", "Warm."),
            said("user", "Thanks"),
        ],
        "tools": [WEATHER, TIME],
    },
    "arguments as text": {
        "messages": [
            said("user", "?"),
            said("assistant", None, tool_calls=[call("now", '{"a": "ü"}')]),
            said("tool", "1", tool_call_id="abc123xyz"),
        ]
    },
    "arguments as an object": {
        "messages": [
            said("user", "?"),
            said("assistant", None, tool_calls=[call("now", {"a": "ü"})]),
            said("tool", "1", tool_call_id="abc123xyz"),
        ]
    },
    "a short id": {
        "messages": [said("user", "?"), said("assistant", "", tool_calls=[call("f", {}, "1")])]
    },
    "reasoning": {
        "messages": [
            said("user", "2+2?"),
            said("assistant", "4", reasoning_content="\nhm\n", thinking="\nhm\n"),
            said("user", "sure?"),
            said("assistant", "yes", reasoning_content="check\n", thinking="check\n"),
        ],
        "add_generation_prompt": False,
    },
    "thoughts in the text": {
        "messages": [
            said("user", "?"),
            said("assistant", "<think>\nhm</think>\n\n4"),
            said("user", "?"),
        ],
        "thinking": True,
    },
    "no thinking": {"messages": PLAIN[:1], "enable_thinking": False, "reasoning_effort": "low"},
    "variables": {"messages": PLAIN[:1], "today": "2 June 2026", "show_padding": True},
    "parts": {"messages": [said("system", PARTS[1:]), said("user", PARTS)]},
    "parts joined": {"messages": [said("system", "two"), said("user", " one two")]},
    "twice the user": {"messages": [said("user", "a"), said("user", "b")]},
    "another role": {"messages": [said("user", "a"), said("critic", "b")]},
}  # fmt: skip


def templates() -> dict[str, str]:
    """Return name to source."""
    return {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))}


def expected() -> dict[str, dict[str, str | None]]:
    """Return template to conversation to transformers' text, None where it raised."""
    found: dict[str, dict[str, str | None]] = json.loads(EXPECTED.read_text("utf-8"))
    return found
