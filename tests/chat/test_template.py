"""Chat templates: the same text as jinja2 set up like transformers, and errors of one line."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastllm.chat import ChatTemplate, template_of
from fastllm.errors import FormatError, RequestError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi é"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "wie heiß?"}}]


def test_chatml_word_for_word() -> None:
    assert ChatTemplate(CHATML).render(TALK) == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi é<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    closed = ChatTemplate(CHATML).render(TALK, add_generation_prompt=False)
    assert closed.endswith("Why?<|im_end|>\n")


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def reference(source: str, **variables: Any) -> str | Exception:
    """Render as transformers does; an exception is returned."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source).render(
            bos_token="<s>", eos_token="</s>", add_generation_prompt=True, **variables
        )
    except Exception as error:  # noqa: BLE001  its text is compared with ours
        return error


FEATURES = [
    "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ '<&>' | tojson }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "{% generation %}{{ messages[1].content }}{% endgeneration %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }} {{ messages[1:] | length }} {{ messages[0].content[:2] ~ '!' }}",
    "{% macro show(m, mark='#') %}{{ mark ~ m.role }}: {{ m.content }}{% endmacro %}"
    "{{ messages | map(attribute='role') | join(', ') }} {{ show(messages[0]) }}",
    "   {% if true %}\n  line\n   {% endif %}\nend\n",
    "{{ '%s-%05.1f' % ('a', 2.5) }} {{ '{:>6}'.format('b') }} {{ 'x,y'.split(',') | last }}",
    "{{ 2 ** 8 }} {{ 'ab' * 2 }} {{ [1] * 3 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ [1] + [2] }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v if not loop.last }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }};{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ none is none }}",
    "{% set x %}block {{ messages[0].role }}{% endset %}{{ x | upper | replace('BLOCK', 'b') }}",
    "{{ 'a\nb' | indent(2) }} {{ 'x' | center(5) }} {{ missing is defined }} {{ nope }}",
    "{{ strftime_now('%d %b %Y') | length > 8 }} {{ range(3) | list }} {{ ('a', 'b') | join }}",
    "{%- for tool in tools %}{{- tool.function.description }}{%- endfor -%}",
    "{% if 'é' in messages[0].content and messages[0]['role'] in ['user', 'x'] %}yes{% endif %}",
    "{{ messages[-1].content.startswith('Wh') }} {{ messages[0].content.rstrip('é') }}",
]


@pytest.mark.parametrize("source", FEATURES)
def test_the_same_as_transformers(source: str) -> None:
    expected = reference(source, messages=TALK, tools=TOOLS)
    assert ChatTemplate(source, "<s>", "</s>").render(TALK, tools=TOOLS) == expected


@pytest.mark.vectors
def test_real_templates() -> None:
    """llama.cpp's collection: all load; each renders, or refuses, as with transformers."""
    paths = sorted(Path(os.environ["FASTLLM_VOCAB_VECTORS"], "templates").glob("*.jinja"))
    assert len(paths) >= 60
    rendered = 0
    for path in paths:
        source = path.read_text("utf-8")
        for tools in (None, TOOLS):
            expected = reference(source, messages=TALK, tools=tools)
            template = ChatTemplate(source, "<s>", "</s>")
            if isinstance(expected, str):
                assert template.render(TALK, tools=tools) == expected, path.name
                rendered += 1
            else:
                with pytest.raises(RequestError) as caught:
                    template.render(TALK, tools=tools)
                assert " ".join(str(expected).split())[:100] in str(caught.value), path.name
    assert rendered >= 1.8 * len(paths)


def test_kwargs_reach_the_template() -> None:
    template = ChatTemplate("{{ 'think' if enable_thinking else 'talk' }}")
    assert template.render(TALK, enable_thinking=True) == "think"
    assert template.render(TALK) == "talk"


def test_special_tokens_by_their_names_in_transformers(tmp_path: Path) -> None:
    source = (
        "{{ pad_token }}{{ unk_token }}{{ additional_special_tokens }}{{ sep_token is defined }}"
    )
    metadata = {
        "tokenizer.chat_template": source,
        "tokenizer.ggml.tokens": ["<pad>", "<unk>"],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
    }
    template = template_of(checkpoint("gguf", metadata, {}))
    assert template is not None
    assert template.render(TALK) == "<pad><unk>False"
    config = {"chat_template": source, "pad_token": {"content": "<p>"}}
    config["additional_special_tokens"] = ["<a>", {"content": "<b>"}]
    config["chat_template"] += "{{ image_token }}"
    config["image_token"] = "<i>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<u>"}))
    files = {path.name: str(path) for path in tmp_path.iterdir()}
    template = template_of(checkpoint("hf", {}, files))
    assert template is not None
    assert template.render(TALK) == "<p><u>['<a>', '<b>']False<i>"


@pytest.mark.parametrize("given", ["thinking", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("read", ["thinking", "reasoning_content"])
def test_reasoning_under_each_name(given: str, read: str) -> None:
    talk = [{"role": "assistant", "content": "a", given: "because"}]
    assert ChatTemplate("{{ messages[0]['" + read + "'] }}").render(talk) == "because"


def test_content_of_none_is_no_word() -> None:
    talk = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None}]
    assert ChatTemplate("[{{ messages[0].content }}{{ messages[0].name }}]").render(talk) == "[]"


PARTS = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("one", "two")]}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{% for p in m.content %}[{{ p.text }}]{% endfor %}", "[one][two]"),
        ("{{ m.content }}", "onetwo"),  # would write the list as Python shows it
        ("{{ m.content | tojson }}", '"onetwo"'),
        ("{{ m.content + '!' }}", "onetwo!"),  # would fail
        ("{% if m.content is string %}{{ m.content }}{% endif %}", "onetwo"),  # would drop it
    ],
)
def test_text_parts_as_the_template_reads_them(content: str, expected: str) -> None:
    source = "{% for m in messages %}" + content + "{% endfor %}"
    assert ChatTemplate(source).render(PARTS) == expected


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("w", "tools must be a list"),
        ({"name": "w"}, "tools must be a list"),
        ([5], r"tools\[0\] must be the JSON schema of a function, not 5"),
        ([{"type": "function"}], r"tools\[0\] needs a name"),
        ([{"name": "w", "x": {1: 2}}], "a key that is not a string"),
    ],
)
def test_malformed_tools(tools: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ChatTemplate("").render(TALK, tools=tools)


def test_the_callers_messages_stay_as_they_are() -> None:
    talk = [{"role": "user", "content": "a", "extra": {"list": [1]}}]
    with pytest.raises(FormatError, match="unsafe"):
        ChatTemplate("{% set _ = messages[0].extra.list.append(2) %}").render(talk)
    assert talk == [{"role": "user", "content": "a", "extra": {"list": [1]}}]


def test_errors_name_the_templates_own_words() -> None:
    with pytest.raises(RequestError, match="refuses the messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must\nalternate') }}").render(TALK)
    with pytest.raises(RequestError, match="fails on these messages: 'nope' is undefined"):
        ChatTemplate("{{ nope.x }}").render(TALK)
    with pytest.raises(FormatError, match="chat template, line 2: "):
        ChatTemplate("a\n{% for %}").render(TALK)
    with pytest.raises(FormatError, match="at most 1048576 are read"):
        ChatTemplate("a" * (1 << 20) + "a")


def checkpoint(kind: str, metadata: dict[str, Any], files: dict[str, str]) -> Any:
    return SimpleNamespace(kind=kind, metadata=metadata, tokenizer_files=files)


def test_template_of_gguf() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}",
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 7,
    }
    template = template_of(checkpoint("gguf", metadata, {}))
    assert template is not None
    assert template.render(TALK) == "<s>|"
    assert template_of(checkpoint("gguf", {}, {})) is None


def test_template_of_a_folder(tmp_path: Path) -> None:
    def found() -> str | None:
        files = {path.name: str(path) for path in tmp_path.iterdir()}
        template = template_of(checkpoint("hf", {}, files))
        return template and template.render(TALK)

    assert found() is None
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    config["chat_template"] = [{"name": "default", "template": "{{ bos_token }}list"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert found() == "<s>list"
    config["chat_template"] = "{{ eos_token }}text"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert found() == "</s>text"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert found() == "json"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert found() == "file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="not UTF-8 at byte 0"):
        found()


def test_the_template_for_tools(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.chat_template": "plain {{ x }}",
        "tokenizer.chat_template.tool_use": "{{ tools[0].function.name }} {{ eos_token }}",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
    }
    template = template_of(checkpoint("gguf", metadata, {}))
    assert template is not None
    assert template.render(TALK) == "plain "
    # where the file names no end token, sentencepiece's own numbers count
    assert template.render(TALK, tools=TOOLS) == f"{TOOLS[0]['function']['name']} </s>"
    assert [template.reads(name) for name in ("x", "tools", "tool")] == [True, True, False]

    def found() -> str | None:
        files = {str(p.relative_to(tmp_path)): str(p) for p in tmp_path.rglob("*.*")}
        template = template_of(checkpoint("hf", {}, files))
        return template and template.render(TALK, tools=TOOLS)

    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found() == "two"
    (tmp_path / "chat_template.jinja").write_text("three")  # the newest place rules alone
    assert found() == "three"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("four")
    assert found() == "four"
