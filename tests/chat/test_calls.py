"""Arguments of tool calls, as objects and as JSON text, in templates that read one or the other."""

import json
import os
from pathlib import Path

import pytest

from fastllm.chat import ChatTemplate
from fastllm.errors import FastLLMError, RequestError

ARGUMENTS = {"city": 'Zü "x" <é>', "n": [1, {"a": None}]}
CALLS = "{% for m in messages %}{% for c in m.tool_calls %}%s{% endfor %}{% endfor %}"
TOJSON = CALLS.replace("%s", "{{ c.function.arguments | tojson }}")
ITEMS = CALLS.replace(
    "%s", "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}"
)
TEXT = CALLS.replace("%s", "{{ '' + c.function.arguments }}")
REPR = CALLS.replace("%s", "{{ c.function.arguments }}")
BOTH = CALLS.replace(
    "%s",
    "{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}",
)
# of an object its words, and the text only where there is no object (gemma 4)
EITHER = CALLS.replace(
    "%s",
    "{% set a = c.function.arguments %}{% if a is string %}{{ a }}{% else %}"
    "{% for k in a %}{{ k }};{% endfor %}{% endif %}",
)  # fmt: skip


def talk(arguments, **call):
    function = {"name": "weather", "arguments": arguments}
    tool_call = {"id": "abcdef123", "type": "function", "function": function, **call}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": "sunny"},
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TOJSON, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (ITEMS, "city=Zü \"x\" <é>;n=[1, {'a': None}];"),
        (TEXT, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (REPR, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (BOTH, json.dumps(ARGUMENTS, ensure_ascii=False)),
        (EITHER, "city;n;"),
    ],
)
def test_both_forms_give_the_same_prompt(source, expected):
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)):
        assert ChatTemplate(source).render(talk(arguments)) == expected


def test_text_that_a_template_writes_stays_as_the_model_wrote_it():
    assert ChatTemplate(BOTH).render(talk('{"a":  1}')) == '{"a":  1}'
    assert ChatTemplate(TEXT).render(talk("{oops")) == "{oops"


def test_no_arguments_are_an_empty_object():
    assert ChatTemplate(TOJSON).render(talk("")) == "{}"


@pytest.mark.parametrize("text", ["{oops", "[1]", "5", '{"a": NaN}', "[" * 5000])
def test_text_that_is_no_object_stays(text):
    assert json.loads(ChatTemplate(TOJSON).render(talk(text))) == text


def test_too_deep_an_object_is_refused():
    text = '{"a":' * 100 + "1" + "}" * 100
    with pytest.raises(RequestError, match="nested"):
        ChatTemplate(TOJSON).render(talk(text))


def test_calls_without_a_function_or_arguments_are_handed_on():
    source = CALLS.replace("%s", "{{ c | tojson }}")
    for call in ({"function": {"name": "f"}}, {"function": None}, {"function": "f"}):
        found = json.loads(ChatTemplate(source).render(talk({}, **call)))
        assert found["function"] == call["function"]


@pytest.mark.vectors
def test_real_templates():
    """None of llama.cpp's collection writes the text as a string of JSON, or an object's repr."""
    paths = sorted(Path(os.environ["FASTLLM_VOCAB_VECTORS"], "templates").glob("*.jinja"))
    compared = 0
    for path in paths:
        template, found = ChatTemplate(path.read_text("utf-8"), "<s>", "</s>"), []
        for arguments in ({"city": "Berlin"}, '{"city": "Berlin"}'):
            try:
                found.append(template.render(talk(arguments)))
            except FastLLMError:
                found.append("")
        assert found[0] == found[1], path.name
        assert r"{\"city" not in found[0]
        compared += "Berlin" in found[0]
    assert compared >= 45
