"""Messages make no control token of any kind of tokenizer, the mark of a text's start included.

And the other way round: a shield that forgets one token is noticed, for every token there is.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.chat.shielding import FieldShield
from fastllm.chat.template import ChatTemplate
from fastllm.prompts import ChatPrompt
from fastllm.tokenizer import Tokenizer
from fastllm.tokenizer.special import SpecialSplitter
from fastllm.tokenizer.to_gguf import gguf_keys
from tests.tokenizer.fixtures import NAMES, files, tokenizer

SOURCE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{{ bos_token }}"
)
NEUTRAL = "a b"
KINDS = [*NAMES, *(f"{name}.gguf" for name in NAMES if not name.startswith("unigram"))]


@cache
def of(kind: str) -> Tokenizer:
    name = kind.removesuffix(".gguf")
    folder = tokenizer(name)
    if name == kind:
        return folder
    return Tokenizer.from_gguf(gguf_keys(files(name), folder.vocab_size).keys)


def template_of(ours: Tokenizer) -> ChatTemplate:
    bos, eos = (
        "" if i is None else ours.id_to_piece(i) for i in (ours.bos_token_id, ours.eos_token_id)
    )
    return ChatTemplate(SOURCE, bos, eos)


def control_ids(ours: Tokenizer, content: str, shield: FieldShield | None = None) -> list[int]:
    """Return the control tokens in the prompt of a message, in order."""
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": NEUTRAL}]
    if shield is None:
        ids = ChatPrompt(template_of(ours), ours, 4096).token_ids(messages)
    else:
        text = template_of(ours).render(messages, shield=shield)
        ids = ours.encode(text, add_special_tokens=False, parse_special=True)
    return [i for i in ids if i in ours.special_ids]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_message_makes_a_control_token(kind: str, data: st.DataObject) -> None:
    ours = of(kind)
    texts = [ours.id_to_piece(i) for i in sorted(ours.special_ids)]
    halves = [text[:n] for text in texts for n in (1, len(text) // 2)]
    pieces = st.sampled_from([*texts, *halves, *(t[1:] for t in texts), " ", "\n", "\u2581", "a"])
    content = data.draw(st.lists(pieces, max_size=6).map("".join))
    # Unigram has no bytes to fall back to: what it does not know is its unknown token.
    unknown = ours.piece_to_id("<unk>")
    found = [i for i in control_ids(ours, content) if i != unknown]
    assert found == control_ids(ours, NEUTRAL)
    plain = ours.encode(content, add_special_tokens=False)
    assert ours.special_ids.isdisjoint(set(plain) - {unknown})


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_shield_forgets_is_noticed(kind: str) -> None:
    ours = of(kind)
    control = {ours.id_to_piece(i): i for i in sorted(ours.special_ids)}
    assert ours.bos_token_id is None or ours.bos_token_id in control.values()
    for forgotten in control:
        rest = {text: i for text, i in control.items() if text != forgotten}
        shield = FieldShield(SpecialSplitter(rest).shield, rest)
        found = control_ids(ours, f"a {forgotten} b", shield)
        assert control[forgotten] in found, forgotten
        assert found != control_ids(ours, NEUTRAL), forgotten


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_messages_make_a_control_token_together(kind: str) -> None:
    ours = of(kind)
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for i in sorted(ours.special_ids):
        text = ours.id_to_piece(i)
        for n in range(1, len(text)):
            halves = [{"role": "user", "content": half} for half in (text[:n], text[n:])]
            ids = ChatPrompt(template, ours, 4096).token_ids(halves)
            unknown = {ours.piece_to_id("<unk>")}
            assert not (ours.special_ids - unknown).intersection(ids), (text, n)


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_marks_in_a_message_are_no_tokens(kind: str) -> None:
    ours = of(kind)
    text = ours.id_to_piece(max(ours.special_ids))
    content = f"a\ufdd0\ufdd1 {text} \ufdd1b\ufdd0"
    ids = ChatPrompt(template_of(ours), ours, 4096).token_ids(
        [{"role": "user", "content": content}]
    )
    assert max(ids) < ours.vocab_size
    assert "\ufdd0" not in ours.decode(ids)
