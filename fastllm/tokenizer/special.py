"""Cut special tokens out of text before anything else looks at it.

A special token is one id that stands for a whole text such as ``<|im_end|>``. User-defined ones are
always cut out, as the libraries do; control tokens only when the caller says that the text is
trusted (``parse_special=True``), so that user text never turns into a turn marker.

A chat template mixes both: its own markers are trusted, the messages inside are not. `shield` puts
`SHIELD` into every control text found in a message; the template carries it along, the splitter
does not recognise the broken text, and the mark is taken out after the cut.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

SHIELD = "\ufdd0"  # a Unicode noncharacter: reserved for use inside a program, never for text
# Unicode's White_Space. Python's `isspace` has four separators more, which the libraries lack.
_SPACES = frozenset(" \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(
    map(chr, range(0x2000, 0x200B))
)


@dataclass(frozen=True)
class Cuts:
    """How some special tokens want to be cut out of a text; fields are sets of ids.

    Attributes
    ----------
    lstrip, rstrip : frozenset of int
        They swallow the white space before or behind them.
    single_word : frozenset of int
        They are not found inside words.
    """

    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    single_word: frozenset[int] = frozenset()


PLAIN = Cuts()


def is_word(char: str) -> bool:
    r"""Return whether a character is one of words, as Unicode's ``\w`` has it."""
    category = unicodedata.category(char)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or char in "\u200c\u200d"
        or "\u24b6" <= char <= "\u24e9"  # letters in circles; here and below, in squares
        or "\U0001f130" <= char <= "\U0001f149"
        or "\U0001f150" <= char <= "\U0001f169"
        or "\U0001f170" <= char <= "\U0001f189"
    )


class SpecialSplitter:
    """Find given texts in a string; of several at one place the longest wins.

    Parameters
    ----------
    tokens : mapping of str to int
        Text to id.
    cuts : Cuts
        What is special about some of them.
    """

    def __init__(self, tokens: Mapping[str, int], cuts: Cuts = PLAIN):
        self._tokens = {text: i for text, i in tokens.items() if text}
        self._cuts = cuts
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {char: sorted(found, reverse=True) for char, found in lengths.items()}
        starts = "".join(re.escape(char) for char in self._lengths)
        self._start = re.compile(f"[{starts}]" if starts else r"(?!)")

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text between special tokens (never empty) and the ids of these tokens."""
        done = at = 0
        while found := self._start.search(text, at):
            at = found.start()
            piece = self._longest_at(text, at)
            if not piece:
                at += 1
                continue
            token_id = self._tokens[piece]
            start, end = at, at + len(piece)
            if token_id in self._cuts.single_word and (
                is_word(text[start - 1 : start] or " ") or is_word(text[end : end + 1] or " ")
            ):
                at = end
                continue
            while token_id in self._cuts.lstrip and start > done and text[start - 1] in _SPACES:
                start -= 1
            while token_id in self._cuts.rstrip and end < len(text) and text[end] in _SPACES:
                end += 1
            if start > done:
                yield text[done:start]
            yield token_id
            done = at = end
        if done < len(text):
            yield text[done:]

    def shield(self, text: str) -> str:
        """Break every special text in `text` with `SHIELD`, so that `split` finds none."""
        out, done, at = [], 0, 0
        while found := self._start.search(text, at):
            at = found.start() + 1
            if self._longest_at(text, at - 1):
                out += [text[done:at], SHIELD]
                done = at
        return "".join([*out, text[done:]])

    def _longest_at(self, text: str, at: int) -> str:
        for length in self._lengths[text[at]]:
            piece = text[at : at + length]
            if piece in self._tokens:
                return piece
        return ""


class Place(Enum):
    """Where a fragment stands: at the text's start, or behind a special token."""

    START = 0
    BEHIND_SPECIAL = 1


class SplittingEncoder:
    """Text to ids: special tokens by `SpecialSplitter`, what lies between by `encode_fragment`.

    Parameters
    ----------
    always, trusted : SpecialSplitter
        Tokens cut out of any text, and those cut out of trusted text (which include the former).
    encode_fragment : callable
        ``(text, place)`` to ids; `place` says where in the whole text it stands.
    """

    def __init__(
        self,
        always: SpecialSplitter,
        trusted: SpecialSplitter,
        encode_fragment: Callable[[str, Place], list[int]],
    ):
        self._always = always
        self._trusted = trusted
        self._encode_fragment = encode_fragment

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of `text`, with no BOS or EOS around them."""
        ids: list[int] = []
        place = Place.START
        for part in (self._trusted if parse_special else self._always).split(text):
            if isinstance(part, int):
                ids.append(part)
                place = Place.BEHIND_SPECIAL
                continue
            fragment = part.replace(SHIELD, "") if parse_special else part
            if fragment:
                ids += self._encode_fragment(fragment, place)
        return ids
