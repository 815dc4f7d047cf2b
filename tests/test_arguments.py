"""Whatever a caller hands in: it works, or ends with an error of ours that names it."""

from __future__ import annotations

import asyncio
import decimal
import enum
import fractions
import os
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm import LLM, SamplingParams, scoring
from fastllm.chat.messages import plain_data
from fastllm.errors import FastLLMError, FormatError, RequestError
from fastllm.hub.store import Store
from fastllm.tokenizer import Tokenizer
from tests.fakes import FakeRunner, FakeTemplate, FakeTokenizer
from tests.tokenizer.tiny import gpt2_metadata

GREEDY = SamplingParams(temperature=0, max_tokens=2)
TALK = [{"role": "user", "content": "hi"}]


class Word(str, enum.Enum):
    HI = "hi"


class Path(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


ODD = st.sampled_from(
    [
        None,
        True,
        np.True_,
        -1,
        3,
        2**31,
        2**70,
        1.5,
        float("nan"),
        float("inf"),
        1j,
        "",
        "a",
        "2",
        "\ud800",
        b"",
        b"ab",
        bytearray(b"a"),
        memoryview(b"ab"),
        object,
        object(),
        print,
        ...,
        range(3),
        range(0),
        slice(1),
        {1, 2},
        frozenset(),
        {},
        {"a": 1},
        {1: 2},
        int,
        SamplingParams,
        GREEDY,
        np.int64(3),
        np.float32(0.5),
        np.array(3),
        np.array([1, 2]),
        np.zeros((2, 2, 2), int),
        np.array([[1, 2]]),
        np.array([1.5]),
        np.array(["a"]),
        np.zeros(0),
        np.array([None]),
        pathlib.Path("x"),
        Path(b"x"),
        Path(5),
        Word.HI,
        "x" * 300,
        decimal.Decimal("0.5"),
        decimal.Decimal("sNaN"),
        fractions.Fraction(1, 2),
        NotImplemented,
        TALK,
        TALK[0],
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": {}},
        {"role": [], "content": ""},
        {"role": "user", "content": [{}]},
    ]
)
VALUES = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: (item for item in items))
        | st.dictionaries(st.sampled_from(["role", "content", "name", "a", "tools"]), inner)
    ),
    max_leaves=6,
)
LLM_CALLS = {
    "generate": lambda llm, v: llm.generate(v, GREEDY),
    "generate params": lambda llm, v: llm.generate("a", v),
    "generate timeout": lambda llm, v: llm.generate("a", GREEDY, timeout=v),
    "submit": lambda llm, v: llm.submit(v, GREEDY).result(),
    "submit params": lambda llm, v: llm.submit([1], v).cancel(),
    "stream": lambda llm, v: list(llm.stream(v, GREEDY)),
    "stream params": lambda llm, v: llm.stream("a", v).close(),
    "chat": lambda llm, v: llm.chat(v, GREEDY),
    "chat params": lambda llm, v: llm.chat(TALK, v),
    "chat tools": lambda llm, v: llm.chat(TALK, GREEDY, tools=v),
    "chat args": lambda llm, v: llm.chat(TALK, GREEDY, template_args=v),
    "chat stream": lambda llm, v: llm.chat(TALK, GREEDY, stream=v),
    "template_reads": lambda llm, v: llm.template_reads(v),
    "agenerate": lambda llm, v: asyncio.run(llm.agenerate(v, GREEDY)),
    "achat": lambda llm, v: asyncio.run(llm.achat(v, GREEDY)),
    "astream": lambda llm, v: asyncio.run(llm.astream(v, GREEDY)),
    "astream_chat": lambda llm, v: asyncio.run(llm.astream_chat(TALK, GREEDY, tools=v)),
    "chat timeout": lambda llm, v: llm.chat(TALK, GREEDY, timeout=v),
    "chat_token_ids": lambda llm, v: llm.chat_token_ids(v),
    "fitting_messages": lambda llm, v: llm.fitting_messages(v),
    "reserve": lambda llm, v: llm.fitting_messages(TALK, reserve=v),
    "logits": lambda llm, v: llm.logits(v),
    "token_logprobs": lambda llm, v: llm.token_logprobs(v),
    "perplexity": lambda llm, v: scoring.perplexity(llm, v, 4),
    "perplexity n_ctx": lambda llm, v: scoring.perplexity(llm, list(range(9)), v),
    "answer timeout": lambda llm, v: llm.submit("a", GREEDY).result(v),
}
TOKENIZER_CALLS = {
    "encode": lambda t, v: t.encode(v),
    "encode special": lambda t, v: t.encode("a", v),
    "encode parse": lambda t, v: t.encode("a", parse_special=v),
    "decode skip": lambda t, v: t.decode([1], v),
    "from_gguf": lambda t, v: t.from_gguf(v),
    "from_hf": lambda t, v: t.from_hf(v),
    "shield": lambda t, v: t.shield(v),
    "decode": lambda t, v: t.decode(v),
    "decode_bytes": lambda t, v: t.decode_bytes(v),
    "token_bytes": lambda t, v: t.token_bytes(v),
    "id_to_piece": lambda t, v: t.id_to_piece(v),
    "piece_to_id": lambda t, v: t.piece_to_id(v),
}
few = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def llm():
    with LLM._of(FakeRunner(), FakeTokenizer(), FakeTemplate(), "fake") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_gguf(gpt2_metadata())


def attempt(call, *args):
    try:
        call(*args)
    except (FastLLMError, TimeoutError) as error:
        text = str(error)
        assert len(text) < 2000, text
        assert "\n" not in text


@pytest.mark.parametrize("name", LLM_CALLS)
@few
@given(value=VALUES)
def test_calls_of_an_llm(llm, name, value):
    if name.endswith("params"):  # the defaults would go on to the end of the context
        value = GREEDY if value is None else value
    attempt(LLM_CALLS[name], llm, value)


@pytest.mark.parametrize("name", TOKENIZER_CALLS)
@few
@given(value=VALUES)
def test_calls_of_a_tokenizer(tokenizer, name, value):
    attempt(TOKENIZER_CALLS[name], tokenizer, value)


@pytest.mark.parametrize("name", SamplingParams.__dataclass_fields__)
@few
@given(value=VALUES)
def test_sampling_params(name, value):
    attempt(lambda: SamplingParams(**{name: value}))


@pytest.mark.parametrize(
    "name", ["model", "n_threads", "n_ctx", "n_batch", "quant", "kv_type", "progress"]
)
@few
@given(value=VALUES)
def test_what_an_llm_is_opened_with(name, value, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLLM_HOME", str(tmp_path / "home"))
    model = str(tmp_path / "none.gguf")
    attempt(lambda: LLM(**{"model": model, name: value}))
    if name == "model":
        attempt(LLM.tokenizer_of, value)


@pytest.mark.parametrize(
    "prompt", [b"ab", bytearray(b"a"), {1: 2}, {1, 2}, [1.0], [True], [[1.5]], 5, None, [None]]
)
def test_what_is_no_prompt_is_named(llm, prompt):
    for call in (llm.generate, llm.stream):
        with pytest.raises(RequestError, match=r"prompt.*must be"):
            call(prompt, GREEDY)


def test_what_every_user_expects_is_welcome(llm):
    expected = llm.generate([[1, 2, 3]], GREEDY)[0].token_ids
    ids = (np.array([1, 2, 3]), (1, 2, 3), [np.int32(1), 2, 3], range(1, 4))
    for prompt in ids:
        assert llm.generate([prompt], GREEDY)[0].token_ids == expected
        assert llm.generate(prompt, GREEDY)[0].token_ids == expected
        assert [t for c in llm.stream(prompt, GREEDY) for t in c.token_ids] == expected
    assert llm.generate(iter([[1, 2, 3]]), (GREEDY,))[0].token_ids == expected
    assert llm.chat(iter(TALK), GREEDY).token_ids == llm.chat(TALK, GREEDY).token_ids
    assert SamplingParams(stop=None) == SamplingParams()


def test_of_an_enum_its_value_counts(llm):
    assert SamplingParams(stop=Word.HI).stop == ("hi",)
    assert SamplingParams(stop=[Word.HI]).stop == ("hi",)
    assert plain_data({Word.HI: Word.HI}, "messages[0]") == {"hi": "hi"}
    assert llm.generate(Word.HI, GREEDY)[0].token_ids == llm.generate("hi", GREEDY)[0].token_ids


@pytest.mark.parametrize("progress", [5, "a", True, object()])
def test_progress_is_something_to_call(progress, tmp_path):
    with pytest.raises(RequestError, match=r"progress=.*must be"):
        LLM(str(tmp_path), progress=progress)


@pytest.mark.parametrize("name", ["x" * 300, "hf:a/b:" + "x" * 300])
def test_a_name_too_long_for_a_file_is_not_here(name, tmp_path):
    assert Store(tmp_path).find(name) is None


def test_a_path_may_be_made_of_bytes(tmp_path):
    (tmp_path / "none.gguf").write_bytes(b"")
    for path in (Path(os.fsencode(tmp_path / "none.gguf")), *os.scandir(os.fsencode(tmp_path))):
        with pytest.raises(FormatError, match=r"none\.gguf"):
            LLM(path)
