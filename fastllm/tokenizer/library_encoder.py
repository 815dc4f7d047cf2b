"""LibraryEncoder: encode by `tokenizers`, with some control texts taken for what they are, text.

The library knows two ways: every control text is a token, or none is. A rendered chat holds both,
the template's own markers and texts inside messages that only look like them (`special.SHIELD`).
So the prompt is cut at its true markers, and what lies between them is encoded

* by the library as it is, as far as no shielded text is in it, all at once;
* with control tokens switched off where one is.

Whether a piece begins the text matters (Metaspace's "first"); a token of our own before it tells
the library that it does not. White space that a marker swallows on the far side of a cut (lstrip,
rstrip) is taken off here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastllm.forks import Lock
from fastllm.tokenizer.special import PLAIN, SHIELD, Cuts, SpecialSplitter

if TYPE_CHECKING:
    import tokenizers

LEAD = "\ufdd1"  # a noncharacter, as SHIELD is: no text holds it


class LibraryEncoder:
    """Text to ids.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    control : mapping of str to int
        Control texts and their ids.
    cuts : Cuts
        How some of them want to be cut out.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, control: Mapping[str, int], cuts: Cuts = PLAIN
    ) -> None:
        self._tokenizer = tokenizer
        self._led: tokenizers.Tokenizer | None = None
        # White space stays where it is: the library, which sees it again, swallows it itself.
        self._control = SpecialSplitter(control, Cuts(single_word=cuts.single_word))
        self._text_of = {i: text for text, i in control.items()}
        self._control_ids = frozenset(control.values())
        self._cuts = cuts
        self._lock = Lock()  # the flag belongs to the shared object

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of `text`, with nothing around them."""
        if not parse_special or SHIELD not in text:
            return self._plain(self._tokenizer, text, not parse_special)
        led = self._with_lead()
        ids: list[int] = []
        for piece, as_text in self._pieces(text.replace(LEAD, "")):
            if ids:
                ids += self._plain(led, LEAD + piece, as_text)[1:]
            else:
                ids += self._plain(self._tokenizer, piece, as_text)
        return ids

    def _plain(self, tokenizer: tokenizers.Tokenizer, text: str, as_text: bool) -> list[int]:
        ids = self._run(tokenizer, text, as_text)
        made = self._control_ids.intersection(ids) if as_text else ()
        if not made:
            return ids
        # Unigram, and BPE that takes whole words, find a control text in their own vocabulary: it
        # is cut after its first character, and the halves are encoded apart.
        found = SpecialSplitter({self._text_of[i]: i for i in made})
        first, *rest = found.shield(text).split(SHIELD)
        ids = self._run(tokenizer, first, True)
        for half in rest:
            ids += self._run(self._with_lead(), LEAD + half, True)[1:]
        return ids

    def _run(self, tokenizer: tokenizers.Tokenizer, text: str, as_text: bool) -> list[int]:
        with self._lock.here:
            tokenizer.encode_special_tokens = as_text
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def _with_lead(self) -> tokenizers.Tokenizer:
        """A copy that knows `LEAD`, made when a message first holds a control text."""
        if self._led is None:
            from tokenizers import AddedToken, Tokenizer

            led = Tokenizer.from_str(self._tokenizer.to_str())
            led.add_tokens([AddedToken(LEAD, normalized=False)])
            self._led = led
        return self._led

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield runs of the prompt and whether control texts in them are text."""
        run: list[str] = []
        before: int | None = None
        parts = [*self._control.split(text)]
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            if isinstance(part, int):
                run.append(self._text_of[part])
                before = part
                continue
            if SHIELD not in part:
                run.append(part)
                continue
            if run:
                yield "".join(run), False
                run = []
            shown = part.replace(SHIELD, "")
            if before in self._cuts.rstrip:
                shown = shown.lstrip()
            if isinstance(after, int) and after in self._cuts.lstrip:
                shown = shown.rstrip()
            if shown:
                yield shown, True
        if run:
            yield "".join(run), False

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()
