"""Numbers for people: decimal units, as disks and networks count."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Return a number of bytes such as "98.4 MB"."""
    number, letter = _scaled(nbytes, "kMG")
    return f"{number} {letter}B"


def count(number: float) -> str:
    """Return a count such as "134.5 M" or "1.5 B"."""
    text, letter = _scaled(number, "kMB")
    return f"{text} {letter}".strip()


def _scaled(number: float, letters: str) -> tuple[str, str]:
    """Return a number with one decimal and the letter of its thousands ("" below 1000)."""
    letter = ""
    for following in letters:
        if abs(number) < 1000:
            break
        number, letter = number / 1000, following
    return f"{number:.1f}" if letter else f"{number:.0f}", letter
