"""Compile and run a template in the sandbox; every failure becomes one of our errors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from fastllm.chat.bounds import Budget, current_budget
from fastllm.chat.sandbox import TemplateEnvironment, TemplateRefusal
from fastllm.errors import FormatError, RequestError


@lru_cache(maxsize=1)
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def compile_source(source: str) -> jinja2.Template:
    """Return a template ready to run.

    Raises
    ------
    FormatError
        It is not valid Jinja.
    """
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(f"chat template, line {error.lineno}: {_one_line(error)}") from error
    except Exception as error:  # parser and Python's compiler: recursion, memory, odd literals
        raise FormatError(f"chat template cannot be compiled: {_one_line(error)}") from error


def run(template: jinja2.Template, variables: dict[str, Any], source_chars: int) -> str:
    """Render within bounds; `source_chars` is the length of the template.

    Raises
    ------
    RequestError
        The template refuses the messages or fails on them.
    FormatError
        It does what the sandbox forbids.
    """
    budget = Budget(source_chars, variables)
    token = current_budget.set(budget)
    try:
        chunks, size, most = [], 0, budget.max_chars
        for chunk in template.generate(variables):
            size += len(chunk)
            if size > most:
                raise SecurityError(f"it writes more than {most} characters")
            chunks.append(chunk)
        return "".join(chunks)
    except TemplateRefusal as error:
        raise RequestError(f"the chat template refuses the messages: {_one_line(error)}") from error
    except SecurityError as error:
        raise FormatError(f"chat template stopped: {_one_line(error)}") from error
    except Exception as error:  # whatever the template's own code runs into
        raise RequestError(
            f"the chat template fails on these messages: {_one_line(error)}"
        ) from error
    finally:
        current_budget.reset(token)
