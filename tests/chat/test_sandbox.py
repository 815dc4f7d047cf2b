"""Templates that mean harm: each ends with an error of ours, soon and in little memory."""

from __future__ import annotations

import pytest

from fastllm.chat import ChatTemplate, bounds
from fastllm.errors import FormatError, RequestError

TALK = [{"role": "user", "content": "x" * 100}]
_GROW = "{%% set ns = namespace(x='aaaa') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x }}"

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "generators": "{% for a in range(99999) | map('string') %}"
    "{% for b in range(99999) | map('string') %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
    "text": "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "sort": "{% for i in range(5000) %}{% set x = range(99999) | sort %}{% endfor %}",
    "search": "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}"
    "{% if 'b' in s %}{% endif %}{% endfor %}",
    "slice": "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}"
    "{% set t = s[1:] %}{% endfor %}",
    "compare": "{% set s = 'a' * 10000000 %}{% set t = s ~ '' %}{% for i in range(99999) %}"
    "{% if s == t %}{% endif %}{% endfor %}",
    "method": "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}"
    "{% set t = s.count('b') %}{% endfor %}",
}
HUGE = {
    "times": "{{ 'a' * 10**12 }}",
    "list times": "{{ [0] * 999999999 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "plus": _GROW % "{% set ns.x = ns.x + ns.x %}",
    "tilde": _GROW % "{% set ns.x = ns.x ~ ns.x %}",
    "block": _GROW % "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
    "list of itself": _GROW % "{% set ns.x = [ns.x, ns.x] %}",
    "dict of itself": _GROW % "{% set ns.x = {'a': ns.x, 'b': ns.x} %}",
    "dict()": _GROW % "{% set ns.x = dict(a=ns.x, b=ns.x) %}",
    "namespace": _GROW % "{% set ns.x = namespace(a=ns.x, b=ns.x) %}",
    "center": "{{ 'a' | center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "format inner": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "replace": "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "replace filter": "{% set a = 'a' * 1000000 %}{{ a | replace('a', a) }}",
    "join": "{% set a = 'a' * 100000 %}{{ a.join(a | list) }}",
    "join filter": "{{ ('a' * 100000) | list | join('a' * 1000000) }}",
    "indent": "{{ ('\n' * 1000000) | indent(1000000) }}",
    "split": "{% set s = 'a ' * 5000000 %}{{ s.split() }}",
    "date": "{{ strftime_now('%99999999Y') }}",
}
FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "self": "{{ self.__init__.__globals__ }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update(role='x') }}",
    "translate": "{{ 'a'.translate({97: 'aa'}) }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "open block": "{% if a %}",
}
FAILING = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "types": "{{ 1 + 'a' }}",
}
INVISIBLE = (
    "{{ messages.__class__ }}",
    "{{ '' | attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
)


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_work_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BUDGET", 300_000)  # a tenth of the time for the same laws
    with pytest.raises(FormatError, match="does not come to an end"):
        ChatTemplate(ENDLESS[name]).render(TALK)


@pytest.mark.parametrize("name", HUGE)
def test_huge_values_are_not_built(name: str) -> None:
    with pytest.raises(FormatError, match="chat template stopped: it ") as caught:
        ChatTemplate(HUGE[name]).render(TALK)
    assert "come to an end" not in str(caught.value)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_forbidden_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="chat template"):
        ChatTemplate(FORBIDDEN[name]).render(TALK)


@pytest.mark.parametrize("name", FAILING)
def test_what_cannot_work_fails(name: str) -> None:
    with pytest.raises(RequestError, match="the chat template fails on these messages"):
        ChatTemplate(FAILING[name]).render(TALK)


@pytest.mark.parametrize("source", INVISIBLE)
def test_internals_are_invisible(source: str) -> None:
    assert ChatTemplate(source).render(TALK) == ""


def test_an_error_leaves_the_template_usable() -> None:
    template = ChatTemplate("{% if messages[1] %}{{ raise_exception('two') }}{% endif %}one")
    for _ in range(3):
        assert template.render(TALK) == "one"
        with pytest.raises(RequestError, match="two"):
            template.render(TALK * 2)


def test_a_long_conversation_fits_the_budget() -> None:
    source = (
        "{% macro show(m) %}{{ m.role ~ ': ' ~ m.content | trim }}{% endmacro %}"
        "{% for m in messages %}{{ show(m) }}{{ '\n' if not loop.last }}{% endfor %}"
    )
    talk = [{"role": "user", "content": "word " * 400}] * 2000
    assert len(ChatTemplate(source).render(talk)) == 2000 * (6 + 1999) + 1999


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}"
        "{% if i >= 0 and messages[i].role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% set ns = namespace(last=messages) %}"
        "{% if messages == ns.last and messages[loop.index0:] %}{{ m.content }}{% endif %}"
        "{% endfor %}",
    ],
)
def test_many_short_messages_fit_the_budget(source: str) -> None:
    talk = [{"role": "user", "content": "word"}] * 2001
    assert ChatTemplate(source).render(talk) == "word" * 2001


def test_the_budget_grows_with_the_input() -> None:
    few, many = ({"messages": [{"a": "b"}] * n} for n in (1, 1000))
    assert bounds.Budget(10, many).left > 2 * bounds.Budget(10, few).left
    assert bounds.Budget(10, {"a": "x" * (20 << 20)}).max_chars > 20 << 20


def test_time_on_the_cpu_ends_a_render_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(bounds, "thread_time", lambda: next(clock))
    with pytest.raises(FormatError, match="does not come to an end"):
        ChatTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}").render(TALK)
