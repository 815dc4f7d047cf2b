"""The command ``fastllm``: parse, import the one command that is asked for, map errors to codes.

Exit codes: 0 done; 1 an error, one line on stderr; 2 wrong usage; 130 Ctrl-C; 143 SIGTERM;
129 SIGHUP. When the reader of stdout goes away (``| head``) we leave quietly with 1.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from fastllm import __version__
from fastllm.cli import options, process
from fastllm.errors import FastLLMError

# Short texts stand here so that --help imports no command.
COMMANDS = {
    "run": "Answer a prompt, or chat.",
    "pull": "Fetch a model.",
    "ls": "List the models that are here.",
    "rm": "Delete a pulled model.",
    "info": "Show what a model is and whether it fits.",
    "bench": "Measure prompt and generation speed.",
    "perplexity": "Score a text file.",
    "tokenize": "Show the tokens of a text.",
    "quantize": "Write a model as a smaller GGUF file.",
    "warmup": "Build the kernels for this machine.",
    "doctor": "Show what this machine can do.",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the help text."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"fastllm.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastllm")
@options.verbose
def cli() -> None:
    """Language models on this machine's CPU.

    MODEL is a name (`fastllm pull` lists them), the path of a GGUF file or of a Hugging Face
    folder, or hf:ORG/REPO[:FILE].
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    try:
        process.prepare()
        code = run(argv)
    except KeyboardInterrupt:  # between two of run's own handlers
        code = 130
    except process.Terminated as terminated:
        code = 128 + terminated.number
    process.leave(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    state: dict[str, bool] = {}
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without UTF-8 shows "?" for what it lacks; an answer must not end in an error.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _invoke(sys.argv[1:] if argv is None else list(argv), state)
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        process.silence_stdout()
        return 1
    except (FastLLMError, OSError, MemoryError) as error:
        if state.get("verbose"):
            raise
        if isinstance(error, FastLLMError):
            text, code = str(error), error.exit_code
        elif isinstance(error, MemoryError):
            text, code = "out of memory: free some, or raise the limit (ulimit -v, container)", 1
        else:
            text, code = _of_system(error), 1
        print(f"fastllm: {' '.join(text.split())}", file=sys.stderr)
        return code


def _invoke(argv: list[str], state: dict[str, bool]) -> int:
    """Parse and run; click's own `main` would print and exit in its own ways on interrupts."""
    instruction = os.environ.get("_FASTLLM_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "fastllm", "_FASTLLM_COMPLETE", instruction)
    try:
        with cli.make_context("fastllm", argv, obj=state) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as done:
        sys.stdout.flush()
        return done.exit_code
    return 0


def _of_system(error: OSError) -> str:
    """Return one line for an error that the operating system raised where none was foreseen."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    process.silence_stdout()  # files have names and stdin is read in `text_input`: it is stdout
    return f"stdout cannot be written: {reason}"
