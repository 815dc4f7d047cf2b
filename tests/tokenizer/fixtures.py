"""Tokenizers as transformers saved them; see `regenerate_fixtures`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from fastllm.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def files(name: str) -> dict[str, str]:
    """Return the files of a fixture's folder by name, as `formats.checkpoint` gives them."""
    return {
        path.name: str(path) for path in (FOLDER / name).iterdir() if path.name != "expected.json"
    }


@cache
def tokenizer(name: str) -> Tokenizer:
    """Return our tokenizer of a fixture."""
    return Tokenizer.from_hf(files(name))


@cache
def expected(name: str) -> dict[str, Any]:
    """Return what transformers made of the texts."""
    found: dict[str, Any] = json.loads((FOLDER / name / "expected.json").read_text())
    return found
