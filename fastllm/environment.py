"""Environment variables: those that fastllm reads, and what they may say.

``FASTLLM_ROAD`` is read in `fastllm.kernels.road`, which knows the roads. A value that means
nothing is an error, never a default in silence.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastllm.arguments import shown
from fastllm.errors import FastLLMError, RequestError

SWITCHES = ("FASTLLM_PREFETCH", "FASTLLM_PIN", "FASTLLM_PURE")


def switch(name: str) -> bool | None:
    """Return what a variable of 0 or 1 says; None where it is unset or empty.

    Raises
    ------
    RequestError
        It says something else.
    """
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise RequestError(f"the environment variable {name}={shown(value)}: must be 0 or 1")
    return value == "1" if value else None


def check_switches() -> None:
    """Refuse at the door what would else be found when a model has been read."""
    for name in SWITCHES:
        switch(name)


def home() -> Path:
    """Return fastllm's own folder: ``$FASTLLM_HOME``, else one in the user's cache.

    Raises
    ------
    FastLLMError
        There is no home folder, and nothing names another.
    """
    chosen = os.environ.get("FASTLLM_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(cache) if cache else Path.home() / ".cache") / "fastllm"
    except RuntimeError as error:  # no HOME, or a user whom the system does not know
        raise FastLLMError(
            "there is no home folder to keep models and kernels in: let FASTLLM_HOME name one"
        ) from error
