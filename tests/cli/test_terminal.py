"""A real terminal (a pseudo-terminal with a process of its own): Ctrl-C as a person presses it."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

import fastllm

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")
fcntl = pytest.importorskip("fcntl")

REPOSITORY = Path(fastllm.__file__).parents[1]
CTRL_C, CTRL_D = b"\x03", b"\x04"
# A fake model says "a" five times and then waits in the middle of a step for the next signal, so
# that no time decides what has been said when it comes.
PROGRAM = """
import os, signal, sys
from fastllm import LLM
from fastllm.cli import main
from tests.fakes import FakeRunner, FakeTemplate, FakeTokenizer, scripted
import fastllm.llm

received, wakeup = os.pipe()
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)

def fake_llm(name, **_):
    steps = []
    def model(history):
        steps.append(len(history))
        if len(steps) == 6:
            os.read(received, 1)
        return scripted(b"a" * 300, steps[0])(history)
    runner = FakeRunner(model=model)
    return LLM._of(runner, FakeTokenizer(), FakeTemplate(), name)

fastllm.llm.LLM = fake_llm
main.main(sys.argv[1:])
"""


class Terminal:
    """A process whose three standard streams are one terminal, which it controls."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "dumb"},
        )
        os.close(slave)

    def read_until(self, text, otherwise=None):
        """Read what is shown up to and with `text`; b"" reads to the end.

        Where it does not come within a second, `otherwise` is called.
        """
        silent_s = 0
        while not (text and text in self.seen):
            if not select.select([self.master], [], [], 1.0)[0]:
                silent_s += 1
                assert silent_s < 60, f"{text!r} is not shown after {self.seen!r}"
                if otherwise:
                    otherwise()
                continue
            try:
                piece = os.read(self.master, 1024)
            except OSError:  # EIO: nobody has the other end any more
                piece = b""
            if not piece:
                assert not text, self.seen
                break
            self.seen += piece
        end = self.seen.index(text) + len(text) if text else len(self.seen)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown.replace(b"\r\n", b"\n")

    def press(self, keys):
        os.write(self.master, keys)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(60)
        os.close(self.master)


def test_ctrl_c_ends_the_line_of_an_answer_before_it_says_so():
    with Terminal("run", "m", "hi", "--temp", "0") as terminal:
        terminal.read_until(b"aaaaa")
        terminal.press(CTRL_C)
        # The step that runs may still add a letter; the terminal shows the key as ^C.
        rest = terminal.read_until(b"").replace(b"^C", b"").lstrip(b"a")
        assert rest == b"\ninterrupted\n"
        assert terminal.process.wait(60) == 130


def test_ctrl_c_in_a_chat_ends_the_answer_and_at_the_prompt_nothing():
    with Terminal("run", "m", "--temp", "0") as terminal:
        terminal.read_until(b">>> ")
        for _ in range(3):
            terminal.press(CTRL_C)
            # CPython shows the prompt before it can be interrupted: a key that is as quick as a
            # test is lost at times, and is pressed again.
            terminal.read_until(
                b"to leave type /bye or press Ctrl-D", otherwise=lambda: terminal.press(CTRL_C)
            )
            terminal.read_until(b">>> ")
        terminal.press(b"/system x\n")
        terminal.read_until(b">>> ")
        terminal.press(CTRL_D)
        assert terminal.read_until(b"")
        assert terminal.process.wait(60) == 0


def test_ctrl_c_in_the_middle_of_a_chats_answer():
    with Terminal("run", "m", "--temp", "0") as terminal:
        terminal.read_until(b">>> ")
        terminal.press(b"hi\n")
        terminal.read_until(b"aaaaa")
        terminal.press(CTRL_C)
        rest = terminal.read_until(b">>> ").replace(b"^C", b"").lstrip(b"a")
        assert rest == b"\n>>> "
        terminal.press(b"/bye\n")
        terminal.read_until(b"")
        assert terminal.process.wait(60) == 0
