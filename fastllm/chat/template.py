"""ChatTemplate: messages to the prompt that the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastllm.chat import calls
from fastllm.chat.messages import checked_messages, checked_tools, joined, plain_data
from fastllm.chat.shielding import FieldShield
from fastllm.chat.source import find_source
from fastllm.errors import FastLLMError, FormatError

if TYPE_CHECKING:
    import jinja2

    from fastllm.formats.checkpoint import Checkpoint

_PROBE = calls.WORD
_PROBE_QUESTION: dict[str, Any] = {"role": "user", "content": "q"}
_PROBE_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdef123", "type": "function", "function": {"name": "f", "arguments": {}}}
    ],
}
_PART_REPR = re.compile(r"""['"]text['"]\s*:""")  # the list itself, as Python or JSON write it

_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_PROBE_RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "f", "content": "r"}

MAX_SOURCE_CHARS = 1 << 20  # the largest template known has 2 % of it

# For models that ship no template: speakers by name, one message a line.


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
    for_tools : ChatTemplate, optional
        The model's other template, used where tools are given.

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
        for_tools: ChatTemplate | None = None,
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
        self._for_tools = for_tools
        self._reads_lists: dict[str, bool] = {}
        self._arguments_form: str | None = None
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
            template that does not iterate over them; arguments of a tool call may be an object or
            its JSON text, and are handed on in the form that the template reads.
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
        if schemas is not None and self._for_tools is not None:
            return self._for_tools.render(
                talk, add_generation_prompt, schemas, shield=shield, **kwargs
            )
        talk = [m if self._takes_lists(m) else joined(m) for m in talk]
        talk = [self._with_arguments(m) if "tool_calls" in m else m for m in talk]
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

    def reads(self, variable: str) -> bool:
        """Return whether a template of this model has a variable of this name."""
        pattern = rf"\b{re.escape(variable)}\b"
        every = (self, self._for_tools) if self._for_tools else (self,)
        return any(re.search(pattern, template.source) for template in every)

    def _with_arguments(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with the arguments of its tool calls as the template reads them."""
        if self._arguments_form is None:
            asked = map(self._probed_call, (calls.TEXT, calls.OBJECT))
            self._arguments_form = calls.form(*asked)
        return calls.with_arguments(message, self._arguments_form)

    def _probed_call(self, arguments: object) -> str:
        function = {"name": "f", "arguments": arguments}
        call = {**_PROBE_CALL["tool_calls"][0], "function": function}
        asked = [_PROBE_QUESTION, {**_PROBE_CALL, "tool_calls": [call]}, _PROBE_RESULT]
        return self._probed(asked, [_PROBE_TOOL]) or self._probed(asked)

    def _probed(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """Return how a conversation of ours looks; empty where the template refuses it."""
        try:
            return self._run({"messages": messages, "tools": tools, "add_generation_prompt": False})
        except FastLLMError:
            return ""

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
            text = self._probed(asked)
            self._reads_lists[role] = text.count(_PROBE) == 2 and not _PART_REPR.search(text)
        return self._reads_lists[role]


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
    tokens = found.special_tokens
    other = found.source_for_tools
    for_tools = ChatTemplate(other, special_tokens=tokens) if other else None
    return ChatTemplate(found.source, special_tokens=tokens, for_tools=for_tools)
