"""StreamDetokenizer: ids one by one to text, never half a character."""

from __future__ import annotations

import codecs

from fastllm.tokenizer.tokenizer import Tokenizer


class StreamDetokenizer:
    """Turn the ids of one answer into text as they come.

    A character may be spread over several tokens; its bytes wait until it is whole. What `put` and
    `finish` return, joined, is exactly ``tokenizer.decode(ids)``.

    Parameters
    ----------
    tokenizer : Tokenizer
    skip_special_tokens : bool
        Leave control tokens out of the text.
    continues : bool
        The ids continue a text already shown, so a leading space is part of it; otherwise
        vocabularies that put a space before every text have it taken away, as in `decode`.

    Examples
    --------
    >>> stream = StreamDetokenizer(tokenizer)  # doctest: +SKIP
    >>> text = "".join(map(stream.put, ids)) + stream.finish()  # doctest: +SKIP
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, continues: bool = False
    ):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip = tokenizer.strips_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token_id: int) -> str:
        """Return the text that this token completes; often it is empty.

        Raises
        ------
        RequestError
            The id is negative.
        """
        if token_id in self._skipped:
            return ""
        piece = self._tokenizer.token_bytes(int(token_id))
        if piece and self._strip:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """Return what is left: U+FFFD for bytes that never became a character."""
        return self._utf8.decode(b"", final=True)
