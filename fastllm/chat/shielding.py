"""No field of a message, tool or variable may make a control token, alone or with its neighbour.

A rendered prompt mixes the template's own text, which is trusted, with the caller's. A control
token can come out of the caller's in four ways, and each is closed here with `SHIELD`, a mark that
the encoder takes out after control tokens are cut:

- it stands whole in a text: broken after its first character (``Tokenizer.shield``);
- it begins at the end of a text and goes on in the next: a mark at the end;
- it began in the text before (or in the template) and ends in this one: a mark at the start;
- the template writes both ends around a whole text, as ``<|role|>``: a mark at the start, except
  for words that the template itself holds, which it compares with or reads as keys.

A role is compared by every template, so it takes no marks: one that would need them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from fastllm.arguments import shown
from fastllm.errors import RequestError
from fastllm.tokenizer.special import SHIELD

_KNOWN_WORD = re.compile(r"""(?<=\.)\w+|(?<=')\w+(?=')|(?<=")\w+(?=")""")  # .word 'word' "word"
_KNOWN_ROLES = frozenset(("system", "user", "assistant", "tool"))


class FieldShield:
    """Marks texts so that no control token comes out of them.

    Parameters
    ----------
    within : callable
        ``Tokenizer.shield``: breaks the control texts that stand whole in a text.
    control_texts : iterable of str
        The texts of the control tokens.
    """

    def __init__(self, within: Callable[[str], str], control_texts: Iterable[str]):
        self._within = within
        texts = [t for t in control_texts if len(t) > 1]
        self._starts = frozenset(t[:n] for t in texts for n in range(1, len(t)))
        self._ends = frozenset(t[n:] for t in texts for n in range(1, len(t)))
        self._longest = max(map(len, texts), default=0)
        self._inside = "\0".join(texts)

    def variables(self, given: dict[str, Any], source: str) -> dict[str, Any]:
        """Return the variables of a template with every text of the caller's in them shielded.

        Raises
        ------
        RequestError
            A role could become a control token.
        """
        words = frozenset(_KNOWN_WORD.findall(source))
        for i, message in enumerate(given["messages"]):
            self._check_role(message["role"], f"messages[{i}]", words)
        return {
            name: [{**self._shielded(m, words), "role": m["role"]} for m in value]
            if name == "messages"
            else self._shielded(value, words)
            for name, value in given.items()
        }

    def text(self, text: str, words: frozenset[str] = frozenset()) -> str:
        """Return a text with marks where a control token could come out of it."""
        if not text or text in words:
            return text
        marked = self._within(text)
        n = min(len(text), self._longest)
        if any(text[-k:] in self._starts for k in range(1, n + 1)):
            marked += SHIELD
        opens = any(text[:k] in self._ends for k in range(1, n + 1))
        if opens or (n == len(text) and text in self._inside):
            marked = SHIELD + marked
        return marked

    def _shielded(self, value: Any, words: frozenset[str]) -> Any:
        if isinstance(value, str):
            return self.text(value, words)
        if isinstance(value, dict):
            return {self.text(k, words): self._shielded(v, words) for k, v in value.items()}
        if isinstance(value, list):
            return [self._shielded(v, words) for v in value]
        return value

    def _check_role(self, role: str, where: str, words: frozenset[str]) -> None:
        if role not in _KNOWN_ROLES and self.text(role, words) != role:
            raise RequestError(
                f"{where} has the role {shown(role)}, which could become a control token of this "
                "model: use 'system', 'user', 'assistant', 'tool' or one that its template knows"
            )
