"""The interactive chat of ``fastllm run``: history, a few commands, Ctrl-C for the answer only."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from fastllm.cli import notices, text_input
from fastllm.cli.answer import begin, show
from fastllm.errors import ContextLengthError, FastLLMError
from fastllm.request import SamplingParams

if TYPE_CHECKING:
    from fastllm.answers import Stream
    from fastllm.cli.template_input import TemplateInput
    from fastllm.llm import LLM

HELP = """\
/help            this text
/clear           forget the conversation
/system TEXT     set the system message and start anew
/bye             leave (so does Ctrl-D)
\"\"\"              begin and end a text of several lines
Ctrl-C           stop the answer"""


class Chat:
    """One conversation in a terminal.

    Parameters
    ----------
    llm : LLM
    params : SamplingParams
    system : str or None
        System message.
    extra : TemplateInput
        Tools and variables of the template.
    chatting : bool
        False: the model has no chat template, and each line is a text to go on from.
    context_shift : bool
        Forget the oldest turns where the conversation outgrows the context.
    as_json, verbose : bool
        As the options of ``fastllm run``.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system: str | None,
        extra: TemplateInput,
        *,
        chatting: bool,
        context_shift: bool,
        as_json: bool,
        verbose: bool,
    ) -> None:
        self._llm, self._params, self._system = llm, params, system
        self._extra, self._context_shift = extra, context_shift
        self._chatting, self._as_json, self._verbose = chatting, as_json, verbose
        self._messages: list[dict[str, str]] = []
        self._clear()

    def loop(self) -> None:
        """Read, answer, and again, until /bye or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history in `input`
        print("/help shows the commands, /bye leaves", file=sys.stderr)
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        while True:
            try:
                if not self._turn():
                    return
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                # The first one of a process has the second end it; here none of them does.
                signal.signal(signal.SIGINT, on_ctrl_c)
                print("\nto leave type /bye or press Ctrl-D", file=sys.stderr)

    def _turn(self) -> bool:
        """Read a line and answer it; False ends the chat."""
        text = self._read()
        if text.startswith("/"):
            return self._obey(text)
        if text.strip():
            self._answer(text)
        return True

    def _read(self) -> str:
        line = _input(">>> ")
        if not line.startswith('"""'):
            return line
        lines = [line[3:]]
        while not lines[-1].endswith('"""'):
            lines.append(_input("... "))
        lines[-1] = lines[-1][:-3]
        return "\n".join(lines).strip("\n")

    def _obey(self, text: str) -> bool:
        """Carry out a command; False ends the chat."""
        word, _, rest = text.partition(" ")
        if word in ("/bye", "/exit", "/quit"):
            return False
        if word == "/clear":
            self._clear()
        elif word == "/system":
            self._system = rest.strip() or None
            self._clear()
        else:
            if word not in ("/help", "/?"):
                print(f"no command {word}", file=sys.stderr)
            print(HELP, file=sys.stderr)
        return True

    def _clear(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def _answer(self, text: str) -> None:
        try:
            asked = [*self._messages, {"role": "user", "content": text_input.argument(text)}]
            asked = self._fitting(asked)
            stream = begin(self._llm, asked, self._params, self._extra, chatting=self._chatting)
            with stream, _stopped_by_ctrl_c(stream):
                answer = show(self._llm, stream, as_json=self._as_json, verbose=self._verbose)
        except FastLLMError as error:
            print(f"{error} (/clear forgets the conversation)", file=sys.stderr)
            return
        # What was stopped half-way stays in the history: the user saw it and may refer to it.
        self._messages = [*asked, {"role": "assistant", "content": answer}]

    def _fitting(self, asked: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the conversation without the turns that have no room beside an answer."""
        llm = self._llm
        if not (self._chatting and self._context_shift and asked[-1]["content"]):
            return asked
        # A quarter for the answer, where it was not asked to be shorter; less for a long question.
        quarter = max(1, llm.n_ctx // 4)
        wanted = quarter if self._params.max_tokens is None else self._params.max_tokens
        keywords = self._extra.keywords
        try:
            kept = llm.fitting_messages(asked, reserve=max(1, min(wanted, quarter)), **keywords)
        except ContextLengthError:
            kept = llm.fitting_messages(asked, reserve=1, **keywords)
        dropped = len(asked) - len(kept)
        if not dropped:
            return asked
        notices.forgotten(dropped, llm.n_ctx)
        return [{"role": m["role"], "content": m["content"]} for m in kept]


def _input(prompt: str) -> str:
    """Read one line, with the prompt on stderr unless both ends are a terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


@contextlib.contextmanager
def _stopped_by_ctrl_c(stream: Stream) -> Iterator[None]:
    """Let Ctrl-C cancel the answer instead of raising somewhere inside the engine."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
