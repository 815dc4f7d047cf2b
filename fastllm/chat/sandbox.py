"""The environment that chat templates run in: Hugging Face's, with bounds.

A template is a program from whoever made the model file. What holds it:

- Jinja's ``ImmutableSandboxedEnvironment``: no underscore attributes, no change of what it is
  given, no imports, no files (there is no loader); only plain data is passed in.
- Work: loop rounds, calls, filters and output take from one `Budget`, as does the thread's time on
  the CPU; both grow with the input. When it is used up the render ends with an error.
- Memory: every operation that can make something much larger than its operands (``*``, ``+``,
  ``~``, ``%``, ``replace``, ``join``, ``indent``, padding, literals) is measured before or as it
  happens, and a value may not exceed `MAX_CHARS` and `MAX_ITEMS`.

What it does not promise: a template may still spend a second and tens of megabytes within
those bounds, and it decides every word of the prompt.

References
----------
transformers ``utils/chat_template_utils.py``: trim_blocks, lstrip_blocks, loop controls, ``tojson``
without escapes, ``raise_exception``, ``strftime_now``, the ``generation`` tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sized
from datetime import datetime
from functools import wraps
from typing import Any, cast

import jinja2
from jinja2 import ext, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastllm.chat.bounds import (
    CHARS_PER_UNIT,
    LONG_NUMBER,
    charge_reading,
    check_bits,
    check_format,
    check_join,
    check_method,
    check_numbers,
    check_replace,
    current_budget,
    factor,
    measured,
    require,
)
from fastllm.tokenizer.special import SHIELD

_ESCAPED_SHIELD = json.dumps(SHIELD)[1:-1]  # the mark must stay one, whatever writes it
_REMOVED_FILTERS = ("wordwrap", "urlize", "xmlattr", "pprint")
_REMOVED_METHODS = frozenset(("translate", "expandtabs", "format_map", "encode"))


class _Generation(ext.Extension):
    """``{% generation %}...{% endgeneration %}``: marks the assistant's part; here only text."""

    tags = {"generation"}  # noqa: RUF012  the name and type that jinja2 asks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face sets it up, every loop, call, filter and growing operation counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            optimized=False,  # folding constants would run them before they are counted
            finalize=_shown,
        )
        self.filters = {
            name: _counted(name, function)
            for name, function in self.filters.items()
            if name not in _REMOVED_FILTERS
        }
        self.filters["tojson"] = _counted("tojson", _tojson)
        self.filters["string"] = _counted("string", _shown_text)
        self.filters["_loop"] = _loop
        self.filters["_measured"] = measured
        self.filters["_concat"] = _concat
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        return super()._generate(_instrument(source), name, filename, defer_init=defer_init)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse what jinja2 refuses, and methods that blow texts up without measure."""
        if isinstance(obj, (str, bytes)) and attr in _REMOVED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the template, counted and measured."""
        budget = current_budget.get()
        # jinja2 hands str.format out in a wrapper of its own.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        budget.charge(budget.macro_units if isinstance(function, Macro) else 1)
        if isinstance(owner, (str, bytes)):
            budget.charge(len(owner) // CHARS_PER_UNIT)
            check_method(owner, function.__name__, args, kwargs)
        return measured(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` once the result is known to be of bearable size."""
        current_budget.get().charge(1)
        texts = (str, bytes, list, tuple)
        if operator == "%":
            if isinstance(left, (str, bytes)):
                values = right if isinstance(right, tuple) else (right,)
                if isinstance(right, Mapping):
                    values = tuple(right.values())
                check_format(left, values)
        elif operator == "**":
            if not (isinstance(left, float) or (abs(left) <= 1 << 32 and abs(right) <= 64)):
                raise SecurityError(f"it raises {left} to the power of {right}")
        elif operator == "*":
            if isinstance(left, texts) or isinstance(right, texts):
                require(factor(left) * factor(right))
            elif isinstance(left, int) and isinstance(right, int):
                check_bits(left, right)
        elif isinstance(left, texts) and isinstance(right, texts):
            require(len(left) + len(right))
        return measured(super().call_binop(context, operator, left, right))


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks what goes in and measures what comes out."""
    # jinja2 hands a context or environment first to filters that ask for one.
    skipped = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        given = args[skipped:]
        value, rest = given[0] if given else None, (*given[1:], *kwargs.values())
        if name not in ("length", "count"):
            charge_reading(value)
        if name not in ("default", "d"):
            check_numbers(rest)
        if name == "replace" and len(rest) >= 2:
            check_replace(str(value), str(rest[0]), str(rest[1]))
        elif name == "join":
            check_join(rest[0] if rest else "", value)
        elif name == "format":
            check_format(value, rest)
        elif name == "indent":
            width = next((factor(v) for v in rest if not isinstance(v, bool)), 4)
            require(len(str(value)) + (str(value).count("\n") + 1) * width)
        return measured(function(*args, **kwargs))

    return counted


def _loop(iterable: Any, units: int) -> Any:
    """Charge for every round of a ``for`` whose body holds `units` of literal text."""
    budget = current_budget.get()
    if isinstance(iterable, Sized):
        budget.charge(1 + len(iterable) * units)
        return iterable

    def rounds() -> Any:
        for item in iterable:
            budget.charge(units)
            yield item

    return iterable if isinstance(iterable, jinja2.Undefined) else rounds()


def _concat(parts: list[Any]) -> str:
    return str(measured("".join(map(_shown_text, measured(parts)))))


def _shown(value: Any) -> Any:
    """Return what the prompt gets of a value; a list or dict as Python writes it."""
    value = measured(value)
    return _shown_text(value) if isinstance(value, (list, tuple, dict)) else value


def _shown_text(value: Any) -> str:
    """Return a value's text; inside a list or dict Python writes the mark as an escape."""
    text = str(value)
    return text if isinstance(value, str) else text.replace(_ESCAPED_SHIELD, SHIELD)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text.replace(_ESCAPED_SHIELD, SHIELD) if ensure_ascii else text


class TemplateRefusal(jinja2.TemplateError):
    """The template's own complaint about the messages, from ``raise_exception``."""


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256 or LONG_NUMBER.search(pattern):
        raise SecurityError("it formats the date by an absurd pattern")
    return datetime.now().strftime(pattern)  # local time, as transformers gives it


def _instrument(node: nodes.Template) -> nodes.Template:
    """Put the counting filters into a parsed template, around whatever costs by its size."""
    _wrap_children(node)
    return node


def _filter(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    inner = cast(nodes.Expr, node)
    return nodes.Filter(inner, name, list(args), [], None, None, lineno=node.lineno)


def _wrap_children(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_wrapped(v) if isinstance(v, nodes.Node) else v for v in value])
        elif isinstance(value, nodes.Node):
            setattr(node, field, _wrapped(value))
    if isinstance(node, nodes.For):
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        units = 1 + text // CHARS_PER_UNIT
        node.iter = _filter("_loop", node.iter, nodes.Const(units, lineno=node.lineno))
    elif isinstance(node, nodes.Compare):
        node.expr = _operand(node.expr)
        for operand in node.ops:
            operand.expr = _operand(operand.expr)


def _operand(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter("_measured", node)


def _wrapped(node: nodes.Node) -> nodes.Node:
    _wrap_children(node)
    if isinstance(node, nodes.Concat):
        return _filter("_concat", nodes.List(node.nodes, lineno=node.lineno))
    if isinstance(node, nodes.Tuple) and node.ctx != "load":
        return node  # the names that an assignment or a loop fills
    is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    if is_slice or isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)):
        return _filter("_measured", node)
    return node
