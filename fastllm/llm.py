"""class LLM: a loaded model, and the one door to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListLike
from pickle import PicklingError
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from fastllm.answers import Answer, Stream, results
from fastllm.arguments import boolean, shown, token_id_list
from fastllm.driver import Driver
from fastllm.engine import Engine, Runner
from fastllm.errors import RequestError
from fastllm.forks import Imports
from fastllm.intake import Intake
from fastllm.options import LoadOptions
from fastllm.prompts import ChatPrompt, Message, Prompt, one_params
from fastllm.request import Completion, SamplingParams
from fastllm.sampling import logprobs as lp

if TYPE_CHECKING:
    from fastllm.async_answers import AsyncStream, Bell
    from fastllm.chat.template import ChatTemplate
    from fastllm.tokenizer.tokenizer import Tokenizer

Progress = Callable[[str, float], None]


class LLM:
    """A loaded model.

    Calls from several threads are safe and share each pass over the weights. Instances of one
    process share its threads, and nothing else. The GIL is free while the model computes.

    Parameters
    ----------
    model : str or PathLike
        A pulled or known name (``"smollm2"``; fetched on first use), the path of a GGUF file or of
        a Hugging Face folder, or ``"hf:org/repo[:file]"``.
    n_threads : int, optional
        Default: the physical cores that this process may use.
    n_ctx : int, optional
        Tokens that prompt and answer may have together. Default: what the model was trained with,
        8192 at most, and fewer where memory is short (`n_ctx_wanted` has what was cut).
    n_batch : int
        Tokens of a prompt computed per step.
    quant : str, optional
        "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "bf16", "f16" or "f32": what float weights are
        converted to while they are loaded.
    kv_type : str, optional
        Type of the KV cache's values, "i16" (16-bit codes, a unit a vector), "f16" or "f32".
        Default: "i16", but "f32" for a model whose matrices are all float32.
    progress : callable, optional
        Called with a label and a fraction from 0 to 1 while the model is fetched, kernels are
        built and weights are read.

    Raises
    ------
    RequestError
        A parameter that cannot be; the text names it, its value and what is allowed.
    ModelNotFoundError, DownloadError
        No such model; it could not be fetched.
    FormatError, UnsupportedError
        The file is damaged; its family, type or tokenizer is not built.
    BudgetError
        It does not fit in the memory that this process may use.
    ReadError, KernelError
        Its file cannot be read; a kernel cannot be built, or not for this CPU.

    Examples
    --------
    >>> with LLM("smollm2") as llm:                                       # doctest: +SKIP
    ...     answer = llm.chat([{"role": "user", "content": "Why is the sky blue?"}])
    ...     print(answer.text)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        quant: str | None = None,
        kv_type: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        options = LoadOptions(n_threads, n_ctx, n_batch, quant, kv_type)
        with Imports():
            from fastllm import loading

            parts = loading.load(model, options, progress)
        self._join(parts.runner, parts.tokenizer, parts.chat_template, parts.name)

    @classmethod
    def _of(
        cls,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        chat_template: ChatTemplate | None = None,
        name: str = "",
    ) -> LLM:
        """Return an LLM over parts that exist already; the seam that our own tests use."""
        llm = cls.__new__(cls)
        llm._join(runner, tokenizer, chat_template, name)
        return llm

    def _join(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        name: str,
    ) -> None:
        self.name = name
        self._runner = runner
        self._driver = Driver(Engine(runner))
        self._intake = Intake(self._driver, runner.config, tokenizer, name)
        self._chat_template = chat_template
        self._prompt_maker: ChatPrompt | None = None

    # -- what it is ----------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: ``encode(text, add_special_tokens=..., parse_special=...)``, ....

        Raises
        ------
        RequestError
            The model came without one.
        """
        return self._intake.tokenizer

    @staticmethod
    def tokenizer_of(model: str | os.PathLike[str]) -> Tokenizer:
        """Return the tokenizer of a model without loading it (vocabulary-only files too).

        Raises
        ------
        ModelNotFoundError
            There is no such model, or it has no tokenizer.
        UnsupportedError, FormatError
            Its kind is not built; it is damaged.
        """
        with Imports():
            from fastllm import loading

            return loading.load_tokenizer(model)

    @property
    def has_chat_template(self) -> bool:
        """True when `chat` can be used."""
        return self._chat_template is not None

    def template_reads(self, name: str) -> bool:
        """Return whether the chat template looks at a variable, such as "tools".

        Raises
        ------
        RequestError
            `name` is no text.
        """
        if not isinstance(name, str):
            raise RequestError(f"name={shown(name)}: must be a text")
        return self._chat_template is not None and self._chat_template.reads(name)

    @property
    def vocab_size(self) -> int:
        """Number of logits of each token."""
        return self._runner.vocab_size

    @property
    def n_ctx(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._driver.engine.max_model_len

    @property
    def n_ctx_wanted(self) -> int:
        """What `n_ctx` would be with more memory: larger only where the default had to shrink."""
        return self._runner.n_ctx_wanted

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return self._runner.n_threads

    @property
    def isa(self) -> str:
        """The road that the kernels take: "amx", "avx512", "avx2" or "generic"."""
        return self._runner.isa

    @property
    def load_s(self) -> float:
        """Seconds that loading took: kernels (built, if need be), reading and packing weights."""
        return self._runner.load_s

    @property
    def model_bytes(self) -> int:
        """Bytes of the weights."""
        return self._runner.model_bytes

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        return self._intake.bos_token_id

    # -- answers -------------------------------------------------------------------------------
    def generate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | ListLike[SamplingParams] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Completion]:
        """Continue one or more prompts, all in one batch, and return the answers in their order.

        Parameters
        ----------
        prompts : str, list of str, list of int, or list of list of int
            Text is encoded with the model's special tokens around it and none made out of it.
        params : SamplingParams, or one for each prompt
            Default: ``SamplingParams()``.
        timeout : float, optional
            Seconds. Answers that are not complete by then end with what they have and the finish
            reason "cancelled". To give up from another thread, see `submit`.

        Raises
        ------
        RequestError
            A prompt is empty, or text is given to a model without a tokenizer.
        ContextLengthError
            A prompt and its answer do not fit in the context. No prompt was computed then.
        """
        return results(self._intake.answers(prompts, params), timeout)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Answer:
        """Begin to continue one prompt and return at once.

        The answer comes from ``.result(timeout=None)``; ``.cancel()`` ends it from any thread, and
        so does forgetting the object.

        Raises
        ------
        RequestError, ContextLengthError
            As `generate`; at once.
        """
        answer = self._intake.answer(self._intake.encode(prompt), one_params(params))
        answer.submit()
        return answer

    def submit_chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> Answer:
        """Begin to answer a conversation and return at once: `chat` as `submit`."""
        answer = self._chat_answer(messages, params, tools, template_args)
        answer.submit()
        return answer

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continue one prompt and yield the answer piece by piece.

        Raises
        ------
        RequestError, ContextLengthError
            As `generate`; at once, not at the first piece.
        """
        return self._intake.stream(self._intake.encode(prompt), one_params(params))

    @overload
    def chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
        stream: Literal[False] = False,
        timeout: float | None = None,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
        stream: Literal[True],
    ) -> Stream: ...
    def chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> Completion | Stream:
        """Answer a conversation, laid out by the model's own chat template.

        Of a conversation that goes on only the new turn is computed. Text of a message never turns
        into a special token.

        Parameters
        ----------
        messages : iterable of mapping
            ``{"role": "system" | "user" | "assistant", "content": str}`` and what else the
            template knows.
        tools : iterable of mapping, optional
            JSON schemas of functions, as OpenAI shapes them: ``{"type": "function", "function":
            {"name": ..., "description": ..., "parameters": {...}}}``. The template tells the model
            of them, if it knows of tools (`template_reads`); a call comes as the text that the
            model was trained to write.
        template_args : mapping, optional
            Variables of the template, such as ``{"enable_thinking": False}``.
        stream : bool
            True: return a `Stream` of chunks.
        timeout : float, optional
            As in `generate`; a stream is ended by who reads it.

        Raises
        ------
        RequestError
            The model has no chat template, or the template refuses the messages.
        """
        if boolean("stream", stream):
            if timeout is not None:
                raise RequestError("timeout: a stream has none; call its close() when it is late")
            token_ids = self.chat_token_ids(messages, tools=tools, template_args=template_args)
            return self._intake.stream(token_ids, one_params(params), new_text=True)
        answer = self._chat_answer(messages, params, tools, template_args)
        return results([answer], timeout)[0]

    def chat_token_ids(
        self,
        messages: Iterable[Message],
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> list[int]:
        """Return the prompt that `chat` makes of a conversation."""
        return self._chat_prompt().token_ids(messages, tools, template_args)

    def fitting_messages(
        self,
        messages: Iterable[Message],
        *,
        reserve: int = 1,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> list[Message]:
        """Return a conversation without its oldest turns, as far as it takes to fit the context.

        Messages of the system stay, and so does the last turn; a turn goes whole, with its tool
        calls and their results.

        Parameters
        ----------
        reserve : int
            Tokens to leave for the answer.

        Raises
        ------
        ContextLengthError
            The last turn alone does not fit.
        RequestError
            As `chat`.
        """
        return self._chat_prompt().fitting(messages, reserve, tools, template_args)

    def _chat_answer(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None,
        tools: Iterable[Message] | None,
        template_args: Message | None,
        bell: Bell | None = None,
    ) -> Answer:
        token_ids = self.chat_token_ids(messages, tools=tools, template_args=template_args)
        prompt = self._intake.encode(token_ids)
        return self._intake.answer(prompt, one_params(params), new_text=True, bell=bell)

    def _chat_prompt(self) -> ChatPrompt:
        if self._chat_template is None:
            raise RequestError(
                f"{self.name or 'this model'} has no chat template: use generate (--no-chat)"
            )
        if self._prompt_maker is None:
            self._prompt_maker = ChatPrompt(self._chat_template, self.tokenizer, self.n_ctx)
        return self._prompt_maker

    # -- for asyncio ---------------------------------------------------------------------------
    async def agenerate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | ListLike[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue one or more prompts: `generate` for asyncio.

        Cancelling the task (``asyncio.timeout``, ``asyncio.wait_for``) ends the requests.
        """
        from fastllm.async_answers import Bell, aresults  # asyncio is loaded where it is used

        bell = Bell()
        return await aresults(self._intake.answers(prompts, params, bell), bell)

    async def achat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> Completion:
        """Answer a conversation: `chat` for asyncio; cancelling the task ends the request."""
        from fastllm.async_answers import Bell, aresults

        bell = Bell()
        answer = self._chat_answer(messages, params, tools, template_args, bell)
        return (await aresults([answer], bell))[0]

    async def astream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncStream:
        """Continue one prompt and return the answer as an asynchronous iterator of chunks."""
        return self._intake.astream(self._intake.encode(prompt), one_params(params))

    async def astream_chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[Message] | None = None,
        template_args: Message | None = None,
    ) -> AsyncStream:
        """Answer a conversation and return the answer as an asynchronous iterator of chunks."""
        token_ids = self.chat_token_ids(messages, tools=tools, template_args=template_args)
        return self._intake.astream(token_ids, one_params(params), new_text=True)

    # -- for evaluation ------------------------------------------------------------------------
    def logits(self, token_ids: ListLike[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the logits after each token: row i scores what may follow ``token_ids[:i + 1]``.

        Returns
        -------
        float32[n_tokens, vocab_size]
            The caller's own copy.
        """
        ids = token_id_list(token_ids, "token_ids")
        out = np.empty((len(ids), self.vocab_size), np.float32)

        def keep(start: int, rows: NDArray[np.float32]) -> None:
            out[start : start + len(rows)] = rows

        self._intake.score(ids, keep)
        return out

    def token_logprobs(self, token_ids: ListLike[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """Return each token's log-probability given those before it, from the second one on.

        Returns
        -------
        float64[n_tokens - 1]
            ``-sum`` is the negative log-likelihood; the logits themselves are never held.
        """
        ids = np.array(token_id_list(token_ids, "token_ids"), np.int64)
        out = np.empty(max(len(ids) - 1, 0), np.float64)

        def score(start: int, rows: NDArray[np.float32]) -> None:
            following = ids[start + 1 : start + 1 + len(rows)]
            out[start : start + len(following)] = lp.token_logprobs(
                rows[: len(following)], following
            )

        self._intake.score(ids.tolist(), score)
        return out

    def reset(self) -> None:
        """Forget the KV cache of the last conversation, so that the next prompt starts cold.

        Answers that run go on.
        """
        self._driver.forget()

    # -- the end -------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the workers and free the weights. Idempotent; later calls raise `RequestError`.

        Takes at most a step: requests that run end with a `RequestError`.
        """
        self._driver.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise PicklingError(
            f"LLM({self.name!r}) cannot be pickled or copied: it holds threads and mapped weights; "
            "load the model again where it is needed"
        )

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, n_ctx={self.n_ctx}, n_threads={self.n_threads})"
