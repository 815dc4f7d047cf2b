"""Intake: a prompt and its params become a sequence for the driver and what its caller holds.

Who asks gets an `Answer`, a `Stream` or an `AsyncStream`; they differ in the sink that the driver's
thread puts events into, and in who is woken by it.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from typing import TYPE_CHECKING

from fastllm.answers import Answer, PromptScorer, Stream
from fastllm.arguments import token_id_list
from fastllm.config import ModelConfig
from fastllm.driver import Driver
from fastllm.errors import RequestError
from fastllm.events import Gathered, Unread
from fastllm.prompts import Prompt, check_length, params_list, prompt_list
from fastllm.request import SamplingParams
from fastllm.sequence import OnRows, Sequence, Sink

if TYPE_CHECKING:
    from fastllm.async_answers import AsyncStream, Bell
    from fastllm.tokenizer.tokenizer import Tokenizer


class Intake:
    """Makes requests of one model.

    Parameters
    ----------
    driver : Driver
    config : ModelConfig
    tokenizer : Tokenizer or None
        None: prompts are token ids.
    name : str
        The model's, for errors.
    """

    def __init__(
        self, driver: Driver, config: ModelConfig, tokenizer: Tokenizer | None, name: str
    ) -> None:
        self._driver, self._tokenizer, self._name = driver, tokenizer, name
        self._bos_token_id = config.bos_token_id
        eos = set(config.eos_token_ids)
        if tokenizer is not None:
            eos.update(tokenizer.eos_token_ids)
        self._eos_token_ids = frozenset(eos)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; `RequestError` where it came without one."""
        if self._tokenizer is None:
            raise RequestError(
                f"{self._name or 'this model'} has no tokenizer: put tokenizer.json or "
                "tokenizer.model beside its weights, or pass token ids"
            )
        return self._tokenizer

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        bos = self._bos_token_id
        return self._tokenizer.bos_token_id if bos is None and self._tokenizer else bos

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt; nothing said yet is BOS."""
        if isinstance(prompt, str):
            check_length(prompt, self._driver.engine.max_model_len)
            ids = self.tokenizer.encode(prompt, add_special_tokens=True, parse_special=False)
        else:
            ids = token_id_list(prompt, "prompt")
        if not ids and self.bos_token_id is not None:
            ids = [self.bos_token_id]
        return ids

    def answers(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | ListLike[SamplingParams] | None,
        bell: Bell | None = None,
    ) -> list[Answer]:
        """Return an answer for each prompt; none is queued yet."""
        every = prompt_list(prompts)
        per_prompt = params_list(params, len(every))
        return [
            self.answer(self.encode(prompt), one, bell=bell)
            for prompt, one in zip(every, per_prompt, strict=True)
        ]

    def answer(
        self,
        token_ids: list[int],
        params: SamplingParams,
        *,
        new_text: bool = False,
        bell: Bell | None = None,
    ) -> Answer:
        """Return an answer that is not queued yet.

        Parameters
        ----------
        token_ids : list of int
            The prompt.
        params : SamplingParams
        new_text : bool
            The answer does not go on in the middle of the prompt's text.
        bell : Bell, optional
            Rung at its end.
        """
        scorer = None
        if params.prompt_logprobs is not None:
            scorer = PromptScorer(token_ids, params.prompt_logprobs)
        sink = Gathered(bell.ring if bell else None)
        seq = self._sequence(token_ids, params, sink, scorer, new_text=new_text)
        return Answer(self._driver, seq, sink, scorer)

    def stream(
        self, token_ids: list[int], params: SamplingParams, *, new_text: bool = False
    ) -> Stream:
        """Begin a stream; parameters as `answer`."""
        sink = Unread()
        seq = self._streamed(token_ids, params, sink, new_text=new_text)
        return Stream(self._driver, seq, sink)

    def astream(
        self, token_ids: list[int], params: SamplingParams, *, new_text: bool = False
    ) -> AsyncStream:
        """Begin a stream of the event loop that runs; parameters as `answer`."""
        from fastllm.async_answers import AsyncStream, Bell  # asyncio is loaded where it is used

        bell = Bell()
        sink = Unread(bell.ring)
        seq = self._streamed(token_ids, params, sink, new_text=new_text)
        return AsyncStream(self._driver, seq, sink, bell)

    def score(self, token_ids: list[int], on_rows: OnRows) -> None:
        """Compute the logits after every token and hand them over as they come, then return."""
        sink = Gathered()
        seq = self._sequence(token_ids, SamplingParams(max_tokens=0), sink, on_rows)
        answer = Answer(self._driver, seq, sink, None)
        try:
            answer.submit()
            answer.result()
        finally:
            answer.cancel()

    def _streamed(
        self, token_ids: list[int], params: SamplingParams, sink: Unread, *, new_text: bool
    ) -> Sequence:
        if params.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs: a stream has no place for them; use generate")
        return self._sequence(token_ids, params, sink, new_text=new_text)

    def _sequence(
        self,
        token_ids: list[int],
        params: SamplingParams,
        sink: Sink,
        on_rows: OnRows | None = None,
        *,
        new_text: bool = False,
    ) -> Sequence:
        if params.stop:
            _ = self.tokenizer  # says what is missing
        detokenizer = None
        if self._tokenizer is not None and params.max_tokens != 0:
            from fastllm.tokenizer.detokenize import StreamDetokenizer

            detokenizer = StreamDetokenizer(self._tokenizer, continues=not new_text)
        return Sequence(
            token_ids,
            params,
            sink,
            eos_token_ids=self._eos_token_ids,
            detokenizer=detokenizer,
            on_rows=on_rows,
        )
