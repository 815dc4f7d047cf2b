"""ChatTemplate: messages to the prompt that the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastllm.chat.messages import checked_messages, checked_tools, joined, plain_data
from fastllm.chat.shielding import FieldShield
from fastllm.chat.source import find_source
from fastllm.errors import FastLLMError, FormatError

if TYPE_CHECKING:
    import jinja2

    from fastllm.formats.checkpoint import Checkpoint

_PROBE = "Wq7Zk3"  # a word that no template holds
_PROBE_QUESTION: dict[str, Any] = {"role": "user", "content": "q"}
_PROBE_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdef123", "type": "function", "function": {"name": "f", "arguments": {}}}
    ],
}
_PART_REPR = re.compile(r"""['"]text['"]\s*:""")  # the list itself, as Python or JSON write it

MAX_SOURCE_CHARS = 1 << 20  # the largest template known has 2 % of it

# For models that ship no template: speakers by name, one message a line.
PLAIN_SOURCE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class ChatTemplate:
    """A model's own layout of a conversation.

    The template comes with the model, so it is run as a stranger's program (see `sandbox`). It is
    compiled when first used. Safe from several threads.

    Parameters
    ----------
    source : str
        Jinja text.
    bos_token, eos_token : str
        What the template writes where it names them.
    special_tokens : mapping, optional
        Further ones by their names in transformers, such as ``pad_token``.

    Raises
    ------
    FormatError
        The source is absurdly long.

    Examples
    --------
    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hi"}])
    '<user>Hi'
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Mapping[str, str | list[str]] | None = None,
    ):
        if len(source) > MAX_SOURCE_CHARS:
            raise FormatError(
                f"chat template has {len(source)} characters, at most {MAX_SOURCE_CHARS} are read"
            )
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.special_tokens = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            **(special_tokens or {}),
        }
        self._reads_lists: dict[str, bool] = {}
        self._compiled: jinja2.Template | None = None

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Iterable[Mapping[str, Any]] | None = None,
        *,
        shield: FieldShield | None = None,
        **kwargs: Any,
    ) -> str:
        """Lay out a conversation.

        The result holds the template's own special tokens: encode it with ``parse_special=True``
        and without adding more. Texts from users need a `shield` then.

        Parameters
        ----------
        messages : iterable of mapping
            Each has "role" (str) and "content" (str, or a list of text parts; None or nothing
            where the message only calls tools). Other keys are handed on. Parts are joined for a
            template that does not iterate over them.
        add_generation_prompt : bool
            End with the opening of the model's answer.
        tools : iterable of mapping, optional
            JSON schemas of functions, for templates that know of tools.
        shield : FieldShield, optional
            Keeps text of the messages, tools and variables from becoming control tokens.
        **kwargs
            Plain data for variables of the template, such as ``enable_thinking=False``. They
            replace special tokens of the same name.

        Raises
        ------
        RequestError
            The messages are malformed, or the template refuses them; its own words are in the text.
        FormatError
            The template itself is broken, or does something that is not allowed.
        """
        talk, schemas = checked_messages(messages), checked_tools(tools)
        talk = [m if self._takes_lists(m) else joined(m) for m in talk]
        given: dict[str, Any] = {
            **plain_data(kwargs, "template variables"),
            "messages": talk,
            "tools": schemas,
        }
        if shield is not None:
            given = shield.variables(given, self.source)
        given["add_generation_prompt"] = bool(add_generation_prompt)
        return self._run(given)

    def _run(self, variables: dict[str, Any]) -> str:
        from fastllm.chat.rendering import compile_source, run

        if self._compiled is None:
            self._compiled = compile_source(self.source)
        return run(self._compiled, {**self.special_tokens, **variables}, len(self.source))

    def _takes_lists(self, message: dict[str, Any]) -> bool:
        """Return whether the template iterates over the text parts of such a message.

        It is asked: a text handed in as a part comes out, and nothing of the part's other words.
        """
        if not isinstance(message.get("content"), list):
            return False
        role = message["role"]
        if role not in self._reads_lists:
            parts = [{"type": "text", "text": _PROBE}, {"type": "text", "text": _PROBE}]
            asked: list[dict[str, Any]] = [{"role": role, "content": parts}]
            if role == "tool":
                asked = [_PROBE_CALL, {**asked[0], "tool_call_id": "abcdef123", "name": "f"}]
            if role in ("assistant", "tool"):
                asked.insert(0, _PROBE_QUESTION)
            if role not in ("user", "tool"):
                asked.append(_PROBE_QUESTION)
            try:
                text = self._run({"messages": asked, "tools": None, "add_generation_prompt": False})
            except FastLLMError:
                text = ""
            self._reads_lists[role] = text.count(_PROBE) == 2 and not _PART_REPR.search(text)
        return self._reads_lists[role]


def plain_template(bos_token: str = "", eos_token: str = "") -> ChatTemplate:
    """Return a layout for models without one: ``User: ...`` and ``Assistant: ...`` lines.

    No model was trained on it in particular; base models follow it tolerably. It is never chosen
    silently: `template_of` gives None, and the caller decides.
    """
    return ChatTemplate(PLAIN_SOURCE, bos_token, eos_token)


def template_of(checkpoint: Checkpoint) -> ChatTemplate | None:
    """Return the chat template that lies in a checkpoint, or None.

    Raises
    ------
    FormatError, ReadError
        The files that should hold it are damaged.
    """
    found = find_source(checkpoint)
    if found is None:
        return None
    return ChatTemplate(found.source, special_tokens=found.special_tokens)
