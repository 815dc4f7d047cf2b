"""No field of a conversation makes a control token: every field, many layouts, hostile words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastllm.chat.shielding import FieldShield
from fastllm.chat.template import ChatTemplate
from fastllm.errors import RequestError
from fastllm.tokenizer.special import SHIELD, SpecialSplitter

CONTROL = {"<|end|>": 0, "<|user|>": 1, "<|assistant|>": 2, "<s>": 3, "</s>": 4, "[INST]": 5}
SPLITTER = SpecialSplitter(CONTROL)
SHIELDING = FieldShield(SPLITTER.shield, CONTROL)

LAYOUTS = (
    # the role between the ends of a token, contents without anything around them
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>",
    # fields side by side, nothing between
    "{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.content | trim }}{{ m.thinking }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}{{ c.function.arguments }}"
    "{% endfor %}{{ m.tool_call_id }}{% endfor %}<s>",
    # names as tags, keys and values of every schema
    "{% for t in tools %}<{{ t.function.name }}>[{{ t.function.description }}]"
    "{% for k, v in t.function.parameters.properties.items() %}<{{ k }}>{{ v.type }}"
    "{{ v.description }}</{{ k }}>{% endfor %}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{{ mood }}|>",
    "{{ tools | tojson }}{{ tools | tojson(ensure_ascii=true) }}{{ messages | tojson(indent=1) }}",
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    # as Python writes lists and dicts
    "{{ tools }}{{ messages ~ mood }}{{ (tools, mood) | string }}",
)
PIECES = st.sampled_from(
    [*"<|>s/[] \néx", "end", "user", "assistant", "INST", "<|end|>", "<|", "|>", "s>", "</s>"]
)
TEXT = st.lists(PIECES, max_size=4).map("".join)
NEUTRAL = "q"


def conversation(text: Any) -> dict[str, Any]:
    """A conversation in which `text()` gives every text that a caller may choose."""
    schema = {
        "type": "object",
        "properties": {text() or "k": {"type": text(), "description": text()}},
    }
    call = {"id": text(), "type": "function"}
    call["function"] = {"name": text(), "arguments": {text() or "k": [text(), {"b": text()}]}}
    messages = [
        {"role": "system", "content": text()},
        {"role": "user", "content": text(), "name": text()},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": text()},
        {"role": "tool", "content": text(), "tool_call_id": text(), "name": text()},
        {"role": "user", "content": [{"type": "text", "text": text()} for _ in range(2)]},
    ]
    function = {"name": text(), "description": text(), "parameters": schema}
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": function}],
        "mood": text(),
    }


def control_ids(source: str, given: dict[str, Any]) -> list[int]:
    return control_ids_of(ChatTemplate(source).render(**given, shield=SHIELDING))


def control_ids_of(text: str) -> list[int]:
    return [part for part in SPLITTER.split(text) if isinstance(part, int)]


@pytest.mark.parametrize("source", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_field_makes_a_control_token(source: str, data: st.DataObject) -> None:
    expected = control_ids(source, conversation(lambda: NEUTRAL))
    assert control_ids(source, conversation(lambda: data.draw(TEXT))) == expected


@pytest.mark.parametrize("source", LAYOUTS[:3])
@settings(max_examples=60, deadline=None)
@given(role=TEXT)
def test_no_role_makes_a_control_token(source: str, role: str) -> None:
    assume(role and role not in ("user", "assistant"))
    talk = conversation(lambda: NEUTRAL)
    expected = control_ids(source, {**talk, "messages": [{"role": "qq", "content": NEUTRAL}]})
    given_role = {**talk, "messages": [{"role": role, "content": NEUTRAL}]}
    found = expected
    with contextlib.suppress(RequestError):
        found = control_ids(source, given_role)
    assert found == expected


@pytest.mark.parametrize("control", CONTROL)
def test_no_part_of_a_control_token_goes_with_its_neighbours(control: str) -> None:
    """Every way to cut one into what stands before, a caller's text, and what stands behind."""
    source = "{{ before }}{{ messages[0].content }}{{ behind }}"
    for start in range(len(control)):
        for end in range(start + 1, len(control) + 1):
            text = SHIELDING.text(control[start:end])
            assert not control_ids_of(control[:start] + text + control[end:])
            for before, behind in ((control[:start], ""), ("", control[end:])):
                message = {"role": "user", "content": control[start:end]}
                around = {"before": before, "behind": behind}
                assert not control_ids(source, {"messages": [message], **around})


def test_only_whole_words_of_the_template_take_no_marks() -> None:
    words = frozenset(("user", "inst"))
    assert SHIELDING.text("user", words) == "user"
    for text in ("user<|end|>", "INST", "s", "x" * 999 + "<s>"):
        assert SHIELD in SHIELDING.text(text, words), text


@pytest.mark.parametrize("source", LAYOUTS)
def test_nothing_is_left_of_a_mark(source: str) -> None:
    talk = conversation(lambda: "<s> a <|end")
    shielded = ChatTemplate(source).render(**talk, shield=SHIELDING)
    assert shielded.replace(SHIELD, "") == ChatTemplate(source).render(**talk)
    assert "fdd0" not in shielded


def test_the_template_for_tools_is_shielded() -> None:
    source = "{{ messages[0].content }}"
    template = ChatTemplate(source, for_tools=ChatTemplate(source))
    tools = [{"type": "function", "function": {"name": "f"}}]
    for offered in (None, tools):
        message = {"role": "user", "content": "<s>"}
        text = template.render([message], tools=offered, shield=SHIELDING)
        assert not control_ids_of(text)


@given(text=st.lists(PIECES, max_size=6).map("".join))
def test_marks_change_nothing_but_themselves(text: str) -> None:
    assert SHIELDING.text(text).replace(SHIELD, "") == text.replace(SHIELD, "")


def test_roles_that_a_template_knows_and_ordinary_text_take_no_marks() -> None:
    source = "{% if messages[0].role == 'end' %}E{% endif %}{{ messages[0].content }}"
    talk = [{"role": "end", "content": "Is 1 < 2? Yes, I say (a[0] > b)."}]
    assert ChatTemplate(source).render(talk, shield=SHIELDING) == "E" + talk[0]["content"]
    with pytest.raises(RequestError, match=r"messages\[0\] has the role '<s>', which could"):
        ChatTemplate(source).render([{"role": "<s>", "content": ""}], shield=SHIELDING)
