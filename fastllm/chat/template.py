"""ChatTemplate: messages to the prompt that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastllm.chat.messages import checked_messages, plain_data
from fastllm.chat.source import find_source
from fastllm.errors import FormatError

if TYPE_CHECKING:
    import jinja2

    from fastllm.formats.checkpoint import Checkpoint

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

    def __init__(self, source: str, bos_token: str = "", eos_token: str = ""):
        if len(source) > MAX_SOURCE_CHARS:
            raise FormatError(
                f"chat template has {len(source)} characters, at most {MAX_SOURCE_CHARS} are read"
            )
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._compiled: jinja2.Template | None = None

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Lay out a conversation.

        The result holds the template's own special tokens: encode it with ``parse_special=True``
        and without adding more. Texts from users go through ``Tokenizer.shield`` first.

        Parameters
        ----------
        messages : iterable of mapping
            Each has "role" (str) and "content" (str, or a list of text parts; None where the
            message only calls tools). Other keys are handed on.
        add_generation_prompt : bool
            End with the opening of the model's answer.
        tools : list of dict, optional
            JSON schemas of functions, for templates that know of tools.
        **kwargs
            Plain data for variables of the template, such as ``enable_thinking=False``.

        Raises
        ------
        RequestError
            The messages are malformed, or the template refuses them; its own words are in the text.
        FormatError
            The template itself is broken, or does something that is not allowed.
        """
        variables = plain_data(kwargs, "template variables")
        variables |= {
            "messages": checked_messages(messages),
            "tools": plain_data(tools, "tools"),
            "add_generation_prompt": bool(add_generation_prompt),
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        from fastllm.chat.rendering import compile_source, run

        if self._compiled is None:
            self._compiled = compile_source(self.source)
        return run(self._compiled, variables, len(self.source))


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
    return ChatTemplate(found.source, found.bos_token, found.eos_token)
