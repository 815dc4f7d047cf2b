"""Templates of the shapes that models have: the same text as transformers, or an error as there."""

from __future__ import annotations

import pytest

from fastllm.chat.shielding import FieldShield
from fastllm.chat.template import ChatTemplate
from fastllm.errors import RequestError
from fastllm.tokenizer.special import SHIELD, SpecialSplitter
from tests.chat.conversations import CONVERSATIONS, SPECIAL, expected, templates

# A list of parts reaches only templates that read lists, and arguments come in the form that a
# template reads: where transformers writes Python's brackets or quotes twice, it is this that ours
# is the same as.
KINDER = {"parts": "parts joined", "arguments as text": "arguments as an object"}
TAKES_LISTS, TAKES_TEXT = ("turns",), ("split", "tags", "turns")
CASES = [(name, title) for name in templates() for title in CONVERSATIONS]


def wanted(name: str, title: str) -> str | None:
    takes = TAKES_LISTS if title == "parts" else TAKES_TEXT
    return expected()[name][title if name in takes else KINDER.get(title, title)]


def render(name: str, title: str, shield: FieldShield | None = None) -> str | None:
    given = {**CONVERSATIONS[title]}
    template = ChatTemplate(templates()[name], special_tokens=SPECIAL)
    try:
        return template.render(given.pop("messages"), shield=shield, **given)
    except RequestError:
        return None


@pytest.mark.parametrize(("name", "title"), CASES)
def test_the_text_is_that_of_transformers(name: str, title: str) -> None:
    assert render(name, title) == wanted(name, title)


@pytest.mark.parametrize(("name", "title"), CASES)
def test_marks_of_the_shield_change_nothing_else(name: str, title: str) -> None:
    control = {"<s>": 0, "</s>": 1, "[INST]": 2, "<User>": 3, "<|im_start|>": 4}
    shield = FieldShield(SpecialSplitter(control).shield, control)
    text = render(name, title, shield)
    assert (text and text.replace(SHIELD, "")) == wanted(name, title)


def test_the_cases_say_something() -> None:
    texts = [text for row in expected().values() for text in row.values()]
    assert len({text for text in texts if text}) > 0.7 * len(texts)
    assert sum(text is None for text in texts) >= 5
