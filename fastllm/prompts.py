"""What callers may hand in as a prompt, brought to one form."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ListLike
from typing import TYPE_CHECKING, Any

from fastllm.arguments import ordered_items, shown, token_id_list, whole_number
from fastllm.errors import ContextLengthError, RequestError
from fastllm.request import SamplingParams

if TYPE_CHECKING:
    from fastllm.chat.shielding import FieldShield
    from fastllm.chat.template import ChatTemplate
    from fastllm.tokenizer.tokenizer import Tokenizer

Prompt = str | ListLike[int]
Message = Mapping[str, Any]
# The longest token of any public vocabulary, a run of spaces, has so many characters.
MAX_TOKEN_CHARS = 512
_TAKEN = frozenset(("self", "messages", "tools", "add_generation_prompt", "shield"))
_TEMPLATE_ARGS = 'template_args must be a mapping such as {"enable_thinking": False}'


def prompt_list(prompts: Prompt | ListLike[Prompt]) -> list[Prompt]:
    """Return what `LLM.generate` was given as a list of prompts, each a str or a list of ids.

    Raises
    ------
    RequestError
        An item is neither a text nor a list of token ids.
    """
    if isinstance(prompts, str):
        return [prompts]
    items = ordered_items(
        prompts, "prompts", "a text, a list of texts, of token ids or of lists of ids"
    )
    if items and all(_is_number(item) for item in items):
        return [token_id_list(items, "prompts")]
    return [one_prompt(item, f"prompts[{i}]") for i, item in enumerate(items)]


def one_prompt(prompt: Any, where: str = "prompt") -> Prompt:
    """Return a prompt as a str or a list of token ids.

    Raises
    ------
    RequestError
        It is neither; a prompt is a text or a list of token ids.
    """
    return prompt if isinstance(prompt, str) else token_id_list(prompt, where)


def check_length(text: str, n_ctx: int) -> None:
    """Refuse a text that no tokenizer could bring into the context, before it is cut into tokens.

    That would take minutes and some hundred bytes for each character.

    Raises
    ------
    ContextLengthError
        It has more than `MAX_TOKEN_CHARS` characters for each token of the context.
    """
    most = MAX_TOKEN_CHARS * n_ctx
    if len(text) > most:
        raise ContextLengthError(
            f"a prompt of {len(text)} characters, but a context of {n_ctx} tokens takes at most "
            f"{most}: shorten it or load with a larger n_ctx (-c)"
        )


def _is_number(item: Any) -> bool:
    try:
        operator.index(item)
    except TypeError:  # a text, a list, an array of several numbers
        return False
    return True


def one_params(params: SamplingParams | None) -> SamplingParams:
    """Return the params of one request, the defaults for None.

    Raises
    ------
    RequestError
        It is something else.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(
            f"params={shown(params)}: must be a SamplingParams, such as "
            "SamplingParams(temperature=0)"
        )
    return params


def params_list(
    params: SamplingParams | ListLike[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """Return one `SamplingParams` for each of `count` prompts.

    Raises
    ------
    RequestError
        There are more or fewer than that, or one is something else.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, (list, tuple)):
        one_params(params)  # type: ignore[arg-type]  # says what is allowed
    if len(params) != count:
        raise RequestError(f"{len(params)} sampling params for {count} prompts: give one for each")
    return [one_params(one) for one in params]


class ChatPrompt:
    """Conversations to token ids: a template and the tokenizer that belongs to it.

    Parameters
    ----------
    template : ChatTemplate
    tokenizer : Tokenizer
    n_ctx : int
        Tokens that prompt and answer may have together.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, n_ctx: int):
        self._template, self._tokenizer, self._n_ctx = template, tokenizer, n_ctx
        self._shield: FieldShield | None = None

    def token_ids(
        self,
        messages: Iterable[Message],
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> list[int]:
        """Return the prompt of a conversation; see `LLM.chat`.

        Raises
        ------
        RequestError
            The template refuses it.
        ContextLengthError
            As `check_length`; a prompt that is merely too long comes back as it is.
        """
        text = self._template.render(
            messages,
            add_generation_prompt=True,
            tools=tools,
            shield=self._field_shield(),
            **_template_args(template_args),
        )
        check_length(text, self._n_ctx)
        return self._tokenizer.encode(text, add_special_tokens=False, parse_special=True)

    def fitting(
        self,
        messages: Iterable[Message],
        reserve: int,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> list[Message]:
        """Return the conversation without its oldest turns; see `LLM.fitting_messages`."""
        from fastllm.chat.messages import checked_messages, checked_tools
        from fastllm.chat.turns import last_turns, num_turns

        n_ctx = self._n_ctx
        reserve = whole_number("reserve", reserve, 1, n_ctx)
        tools = checked_tools(tools)  # an iterator is read once
        every: list[Message] = list(checked_messages(messages))

        def used(turns: int) -> int:
            return len(self.token_ids(last_turns(every, turns), tools, template_args))

        def fit(turns: int) -> bool:
            try:
                return used(turns) + reserve <= n_ctx
            except ContextLengthError:
                return False

        most = num_turns(every)
        if fit(most):
            return every
        tokens = used(1)
        if tokens + reserve > n_ctx:
            raise ContextLengthError(
                f"the last turn alone takes {tokens} tokens and the answer {reserve}; the context "
                f"holds {n_ctx}: shorten it or load with a larger n_ctx (-c)"
            )
        # From the short end, in doubling steps: what is laid out is little longer than what fits.
        fits, too_many = 1, most
        while too_many - fits > 1:
            middle = min(2 * fits, (fits + too_many) // 2)
            if fit(middle):
                fits = middle
            else:
                too_many = middle
        return last_turns(every, fits)

    def _field_shield(self) -> FieldShield:
        if self._shield is None:
            from fastllm.chat.shielding import FieldShield

            texts = map(self._tokenizer.id_to_piece, sorted(self._tokenizer.special_ids))
            self._shield = FieldShield(self._tokenizer.shield, texts)
        return self._shield


def _template_args(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RequestError(f"{_TEMPLATE_ARGS}, not {shown(given)}")
    args = dict(given)
    if not all(isinstance(name, str) for name in args):
        raise RequestError(f"{_TEMPLATE_ARGS}; a name is a text, found {shown(list(args))}")
    if taken := _TAKEN.intersection(args):
        raise RequestError(f"template_args: {shown(min(taken))} is not a variable to set here")
    return args
