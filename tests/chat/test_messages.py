"""What a conversation may look like."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm.chat.messages import checked_messages, plain_data
from fastllm.errors import RequestError


def test_messages_are_copied_and_empty_keys_left_out() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": ({"id": "1"},)}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    result = checked_messages(iter([{"role": "user", "content": parts}, call]))
    assert result == [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
    ]
    assert result[0]["content"] is not parts


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ("hi", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (None, "must be a list"),
        (["hi"], r"messages\[0\] must be an object, not str"),
        ([{"content": "a"}], r"messages\[0\] needs a role"),
        ([{"role": 1, "content": "a"}], "needs a role"),
        ([{"role": "user"}], "needs a string as content, found NoneType"),
        ([{"role": "user", "content": 5}], "needs a string as content, found int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'; only text parts"),
        ([{"role": "user", "content": ["a"]}], "type 'str'; only text parts"),
        ([{"role": "user", "content": "a", "x": object()}], "holds a object"),
        ([{"role": "user", "content": "a", 1: 2}], "a key that is not a string"),
    ],
)
def test_malformed_messages(messages: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        checked_messages(messages)


def test_only_plain_data_gets_through() -> None:
    class Text(str):
        pass

    assert type(plain_data({"a": (Text("x"), True, None, 1.5)}, "w")["a"][0]) is str
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match="nested more than 64 deep"):
        plain_data(deep, "tools")
