"""Write ``renderings/expected.json``: what transformers makes of the templates beside it.

python -m tests.chat.regenerate_renderings
"""

from __future__ import annotations

import json
from typing import Any

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.chat.conversations import CONVERSATIONS, EXPECTED, SPECIAL, templates

# What Python raises where a template does with a value what cannot be done with it.
REFUSALS = (jinja2.TemplateError, TypeError, ValueError)


def rendered(tokenizer: Any, source: str, given: dict[str, Any]) -> str | None:
    given = {"add_generation_prompt": True, **given}
    messages = given.pop("messages")
    try:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, **given
        )
    except REFUSALS:
        return None
    return text


def main() -> None:
    library = Tokenizer(models.BPE())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, **SPECIAL)
    rows = {
        name: {title: rendered(tokenizer, source, given) for title, given in CONVERSATIONS.items()}
        for name, source in templates().items()
    }
    EXPECTED.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
