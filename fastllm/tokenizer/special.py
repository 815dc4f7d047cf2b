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
from collections.abc import Callable, Iterator, Mapping

SHIELD = "\ufdd0"  # a Unicode noncharacter: reserved for use inside a program, never for text
_ASCII_SPACES = " \t\n\v\f\r"


class SpecialSplitter:
    """Find given texts in a string; of several at one place the longest wins.

    Parameters
    ----------
    tokens : mapping of str to int
        Text to id.
    eat_spaces_after : collection of int
        Ids that swallow the white space that follows them (``rstrip`` in Hugging Face's words).
    """

    def __init__(self, tokens: Mapping[str, int], eat_spaces_after: frozenset[int] = frozenset()):
        self._tokens = {text: i for text, i in tokens.items() if text}
        self._eat = eat_spaces_after
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
            if at > done:
                yield text[done:at]
            token_id = self._tokens[piece]
            yield token_id
            done = at + len(piece)
            while token_id in self._eat and done < len(text) and text[done] in _ASCII_SPACES:
                done += 1
            at = done
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


class SplittingEncoder:
    """Text to ids: special tokens by `SpecialSplitter`, what lies between by `encode_fragment`.

    Parameters
    ----------
    always, trusted : SpecialSplitter
        Tokens cut out of any text, and those cut out of trusted text (which include the former).
    encode_fragment : callable
        ``(text, starts)`` to ids; `starts` is true at the start and after a special token.
    """

    def __init__(
        self,
        always: SpecialSplitter,
        trusted: SpecialSplitter,
        encode_fragment: Callable[[str, bool], list[int]],
    ):
        self._always = always
        self._trusted = trusted
        self._encode_fragment = encode_fragment

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of `text`, with no BOS or EOS around them."""
        ids: list[int] = []
        starts = True
        for part in (self._trusted if parse_special else self._always).split(text):
            if isinstance(part, int):
                ids.append(part)
                starts = True
                continue
            fragment = part.replace(SHIELD, "") if parse_special else part
            if fragment:
                ids += self._encode_fragment(fragment, starts)
                starts = False
        return ids
