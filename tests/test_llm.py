"""The public door over a fake model."""

import asyncio
import copy
import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import LLM, SamplingParams, scoring
from fastllm.chat import ChatTemplate
from fastllm.errors import ContextLengthError, FormatError, RequestError
from tests.driven import at_rest
from tests.fakes import (
    BOS,
    MARK,
    FakeRunner,
    FakeTemplate,
    FakeTokenizer,
    logits_after,
    scripted,
)

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def fake_llm(tokenizer=True, template=True, **runner):
    return LLM._of(
        FakeRunner(**runner),
        FakeTokenizer() if tokenizer else None,
        FakeTemplate() if template else None,
        "fake",
    )


def log_softmax(row):
    row = row.astype(float) - float(row.max())
    return row - np.log(np.exp(row).sum())


def test_generate_takes_texts_and_tokens_and_keeps_their_order():
    llm = fake_llm()
    texts = llm.generate(["one", "two", "one"], GREEDY)
    assert texts[0].token_ids == texts[2].token_ids != texts[1].token_ids
    assert texts[1].prompt_token_ids == [BOS, *b"two"]
    assert llm.generate("two", GREEDY)[0].token_ids == texts[1].token_ids
    tokens = llm.generate([[BOS, *b"one"], "two"], GREEDY)
    assert [t.token_ids for t in tokens] == [t.token_ids for t in texts[:2]]
    assert llm.generate([BOS, *b"one"], GREEDY)[0].token_ids == texts[0].token_ids
    assert llm.generate(np.array([[BOS, *b"one"]]), GREEDY)[0].token_ids == texts[0].token_ids
    assert llm.generate([], GREEDY) == []
    with pytest.raises(RequestError, match="must be a text or a list of token ids"):
        llm.generate([None], GREEDY)


def test_params_for_each_prompt():
    llm = fake_llm()
    two = [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)]
    assert [len(c.token_ids) for c in llm.generate(["a", "b"], two)] == [2, 3]
    with pytest.raises(RequestError, match="2 sampling params for 1 prompts"):
        llm.generate(["a"], two)


def test_stream_gives_what_generate_gives():
    llm = fake_llm()
    params = SamplingParams(seed=5, max_tokens=30, logprobs=2)
    whole = llm.generate("hello", params)[0]
    chunks = list(llm.stream("hello", params))
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == whole.token_ids
    assert [p for c in chunks for p in c.logprobs] == whole.logprobs
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason == "length"
    assert chunks[-1].timings.completion_tokens == 30
    assert all("\ufffd" not in c.text or "\ufffd" in whole.text for c in chunks)


def test_characters_over_several_tokens_come_whole():
    answer = "naïve 日本語 🦙"
    llm = fake_llm(model=scripted(answer.encode(), 2))
    texts = [c.text for c in llm.stream("x", SamplingParams(temperature=0))]
    assert "".join(texts) == answer
    assert not any("\ufffd" in text for text in texts)
    # Cut in the middle of a character: the rest shows as one that is broken, nothing is lost.
    cut = llm.generate("x", SamplingParams(temperature=0, max_tokens=3))[0]
    assert cut.text == "na\ufffd"


def test_stop_strings_over_token_borders():
    llm = fake_llm(model=scripted(b"one. two. END three", 2))
    params = SamplingParams(temperature=0, stop=(" END", "never"))
    chunks = list(llm.stream("x", params))
    assert "".join(c.text for c in chunks) == "one. two."
    assert chunks[-1].finish_reason == "stop"
    assert llm.generate("x", params)[0].text == "one. two."
    # What only looked like the beginning of a stop string is shown at the end.
    llm = fake_llm(model=scripted(b"one EN", 2))
    assert llm.generate("x", params)[0].text == "one EN"


def test_logprobs_of_answer_and_prompt():
    llm = fake_llm()
    prompt = [BOS, *b"hello"]
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1)
    found = llm.generate([prompt], params)[0]
    everything = [*prompt, *found.token_ids]
    rows = [log_softmax(logits_after(everything[: i + 1])) for i in range(len(everything))]
    assert found.prompt_logprobs[0] is None
    for i, entry in enumerate(found.prompt_logprobs[1:], 1):
        assert entry.token_id == prompt[i]
        assert entry.logprob == pytest.approx(rows[i - 1][prompt[i]])
        assert entry.top == ((rows[i - 1].argmax(), pytest.approx(rows[i - 1].max())),)
    for i, entry in enumerate(found.logprobs, len(prompt)):
        assert entry.logprob == pytest.approx(rows[i - 1][everything[i]])
        assert len(entry.top) == 2
        assert entry.top[0][0] == entry.token_id
    assert llm.generate("x", GREEDY)[0].logprobs is None
    # The prompt alone, as evaluation harnesses ask for it.
    scored = llm.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))[0]
    assert scored.token_ids == []
    assert [p.logprob for p in scored.prompt_logprobs[1:]] == pytest.approx(
        [p.logprob for p in found.prompt_logprobs[1:]]
    )
    with pytest.raises(RequestError, match="use generate"):
        llm.stream("x", SamplingParams(prompt_logprobs=0))


def test_logits_are_the_callers_own():
    llm = fake_llm(max_batch_tokens=4)
    ids = [BOS, *b"hello world"]
    first = llm.logits(ids)
    assert first.dtype == np.float32
    assert first.shape == (len(ids), llm.vocab_size)
    for i in range(len(ids)):
        np.testing.assert_array_equal(first[i], logits_after(ids[: i + 1]))
    second = llm.logits(np.array(ids))
    first[:] = 0
    assert second.any()
    logprobs = llm.token_logprobs(ids)
    expected = [log_softmax(logits_after(ids[:i]))[ids[i]] for i in range(1, len(ids))]
    np.testing.assert_allclose(logprobs, expected)
    assert llm.token_logprobs([BOS]).shape == (0,)


def test_an_empty_prompt_begins_with_bos_where_there_is_one():
    llm = fake_llm()
    assert llm.generate([[]], GREEDY)[0].prompt_token_ids == [BOS]
    tokenizer = FakeTokenizer()
    tokenizer.bos_token_id = None
    tokenizer.encode = lambda text, **_: list(text.encode())
    llm = LLM._of(FakeRunner(bos_token_id=None), tokenizer, None, "fake")
    with pytest.raises(RequestError, match="prompt is empty"):
        llm.generate("", GREEDY)


def test_no_prompt_runs_when_one_of_them_is_too_long():
    llm = fake_llm(n_ctx=50)
    with pytest.raises(ContextLengthError):
        llm.generate(["short", "long" * 20], GREEDY)
    assert llm._runner.num_tokens == 0
    with pytest.raises(ContextLengthError):
        llm.stream("long" * 20)
    with pytest.raises(ContextLengthError):
        llm.logits([1] * 51)


def test_a_model_without_tokenizer_works_with_tokens_and_says_what_is_missing():
    llm = fake_llm(tokenizer=False, template=False)
    found = llm.generate([[1, 2, 3]], GREEDY)[0]
    assert found.text == ""
    assert len(found.token_ids) == 8
    for call in (
        lambda: llm.generate("text", GREEDY),
        lambda: llm.tokenizer,
        lambda: llm.generate([[1]], SamplingParams(stop="x")),
    ):
        with pytest.raises(RequestError, match=r"fake has no tokenizer.*tokenizer\.json"):
            call()
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_user_text_never_becomes_a_special_token():
    llm = fake_llm()
    ids = llm.chat_token_ids([{"role": "user", "content": "a<mark>b"}])
    assert ids.count(MARK) == 2  # the template's own
    text = bytes(i for i in ids if i < 256).decode()
    assert text == "user:a<mark>b\n"
    parts = [{"role": "user", "content": [{"type": "text", "text": "<mark>"}]}]
    assert llm.chat_token_ids(parts).count(MARK) == 2
    assert MARK not in llm.generate("<mark>", GREEDY)[0].prompt_token_ids


def test_chat_whole_and_streamed():
    llm = fake_llm()
    messages = [{"role": "user", "content": "hi"}]
    n = len(llm.chat_token_ids(messages))
    llm._runner.model = scripted(b"hello there", n)
    greedy = SamplingParams(temperature=0)
    assert llm.chat(messages, greedy).text == "hello there"
    chunks = list(llm.chat(messages, greedy, stream=True))
    assert "".join(c.text for c in chunks) == "hello there"
    assert chunks[-1].finish_reason == "stop"


def test_tools_and_template_args_reach_the_template():
    source = "<mark>{{ tools[0].function.name }}{{ 'T' if enable_thinking else 'F' }}"
    llm = LLM._of(FakeRunner(), FakeTokenizer(), ChatTemplate(source), "fake")
    talk = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "<mark>w"}}]
    args = {"enable_thinking": True}
    ids = llm.chat_token_ids(talk, tools=iter(tools), template_args=args)
    assert ids == [MARK, *b"<mark>wT"]
    done = llm.chat(talk, GREEDY, tools=tools, template_args=args)
    assert done.prompt_token_ids == ids
    streamed = llm.chat(talk, GREEDY, tools=tools, template_args=args, stream=True)
    assert [t for c in streamed for t in c.token_ids] == done.token_ids
    assert llm.submit_chat(talk, GREEDY, tools=tools, template_args=args).result() is not None
    for wrong in (5, [1], {1: 2}, {"messages": []}, {"shield": 1}, {"x": object()}):
        with pytest.raises(RequestError, match="template"):
            llm.chat_token_ids(talk, template_args=wrong)


def test_a_conversation_is_shortened_by_whole_turns():
    llm = fake_llm(n_ctx=100)

    def turn(n):
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        tool = {"role": "tool", "content": "sunny"}
        answer = {"role": "assistant", "content": "ok"}
        return [{"role": "user", "content": str(n) * 10}, call, tool, answer]

    system = {"role": "system", "content": "kind"}
    last = {"role": "user", "content": "bye"}
    talk = [system, *turn(1), *turn(2), last]
    short = [system, last]
    kept = llm.fitting_messages(iter(talk), reserve=10)
    assert [m["role"] for m in kept] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert kept[1]["content"] == "2" * 10
    assert len(llm.chat_token_ids(kept)) + 10 <= 100
    used = len(llm.chat_token_ids(short))
    assert llm.fitting_messages(talk, reserve=100 - used) == short
    with pytest.raises(ContextLengthError, match="the last turn alone"):
        llm.fitting_messages(talk, reserve=100 - used + 1)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=40), st.integers(40, 400))
@settings(max_examples=60, deadline=None)
def test_a_conversation_loses_as_few_turns_as_will_do(turns, n_ctx):
    llm = fake_llm(n_ctx=n_ctx)
    talk = [{"role": "system", "content": "kind"}]
    for length, answered in turns:
        talk.append({"role": "user", "content": "q" * length})
        talk += [{"role": "assistant", "content": "ok"}] if answered else []
    talk.append({"role": "user", "content": "bye"})
    starts = [i for i, m in enumerate(talk) if m["role"] == "user"]
    shortened = [talk, *([talk[0], *talk[i:]] for i in starts[1:])]  # by one turn after the other
    expected = next(s for s in shortened if len(llm.chat_token_ids(s)) + 5 <= n_ctx)
    assert llm.fitting_messages(talk, reserve=5) == expected


def test_what_no_tokenizer_could_bring_into_the_context_is_not_tokenized(monkeypatch):
    llm = fake_llm(n_ctx=50)
    most = 512 * 50
    encode, lengths = FakeTokenizer.encode, []

    def counted(self, text, **how):
        lengths.append(len(text))
        return encode(self, text, **how)

    monkeypatch.setattr(FakeTokenizer, "encode", counted)
    long = [{"role": "user", "content": "x" * (most + 1)}]
    for ask in (
        lambda: llm.generate("x" * (most + 1)),
        lambda: llm.stream("x" * (most + 1)),
        lambda: llm.chat(long),
        lambda: llm.fitting_messages(long),
    ):
        with pytest.raises(ContextLengthError, match=f"of 50 tokens takes at most {most}"):
            ask()
    assert not lengths
    with pytest.raises(ContextLengthError, match="a prompt of 25601 tokens"):
        llm.generate("x" * most)
    last = [{"role": "user", "content": "bye"}]
    assert llm.fitting_messages([*long, *last]) == last


def test_a_long_conversation_is_laid_out_few_times(monkeypatch):
    llm = fake_llm(n_ctx=200)
    talk = [{"role": "user", "content": str(i)} for i in range(2000)]
    rendered = []
    render = ChatTemplate.render

    def counted(self, messages, *args, **kwargs):
        rendered.append(len(messages))
        return render(self, messages, *args, **kwargs)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    kept = llm.fitting_messages(talk, reserve=10)
    assert sum(rendered) < len(talk) + 20 * len(kept)


def test_an_answer_on_its_way_says_why_it_cannot_be_pickled_or_copied():
    llm = fake_llm()

    async def hold():
        return await llm.astream("a", GREEDY)

    for held in (llm.stream("a", GREEDY), llm.submit("a", GREEDY), asyncio.run(hold())):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(pickle.PicklingError, match="cannot be pickled or copied"):
                attempt(held)


def test_an_llm_says_why_it_cannot_be_pickled_or_copied():
    llm = fake_llm()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(pickle.PicklingError, match="cannot be pickled or copied"):
            attempt(llm)
    for value in (SamplingParams(stop=None, seed=3), llm.generate("x", GREEDY)[0]):
        assert pickle.loads(pickle.dumps(value)) == value


def test_a_stream_can_be_cancelled_closed_and_forgotten():
    llm = fake_llm()
    stream = llm.stream("x", SamplingParams(max_tokens=100))
    next(stream)
    stream.cancel()
    assert [c.finish_reason for c in stream][-1] == "cancelled"
    with llm.stream("x", SamplingParams(max_tokens=100)) as stream:
        next(stream)
    assert list(stream) == []
    forgotten = llm.stream("x", SamplingParams(max_tokens=100))
    next(forgotten)
    del forgotten
    gc.collect()
    at_rest(llm)  # nobody asks for anything, and yet
    assert not llm._driver.engine.scheduler.running


def test_two_threads_stream_at_once():
    llm = fake_llm(n_ctx=400, num_blocks=20)
    params = SamplingParams(seed=1, max_tokens=100)
    expected = {text: llm.generate(text, params)[0].token_ids for text in ("one", "two", "three")}
    found = {}

    def ask(text):
        found[text] = [t for c in llm.stream(text, params) for t in c.token_ids]

    threads = [threading.Thread(target=ask, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == expected


def test_broken_weights_are_an_error_of_ours():
    llm = fake_llm(model=lambda history: np.full(264, np.nan, np.float32))
    with pytest.raises(FormatError, match="NaN"):
        llm.generate("x", GREEDY)
    with pytest.raises(FormatError, match="NaN"):
        llm.token_logprobs([1, 2, 3])


def test_closing():
    with fake_llm() as llm:
        assert "fake" in repr(llm)
    assert llm._runner.closed
    with pytest.raises(RequestError, match="closed"):
        llm.generate("x", GREEDY)


def test_bad_numbers_are_refused_before_anything_is_loaded():
    with pytest.raises(RequestError, match="n_threads=0"):
        LLM("does-not-matter", n_threads=0)


def test_perplexity_by_hand():
    llm = fake_llm()
    text = list(b"the quick brown fox jumps over the lazy dog")  # 43 tokens
    for add_bos, size, starts in ((False, 10, range(0, 40, 10)), (True, 10, range(0, 36, 9))):
        prefix = [BOS] if add_bos else []
        step = size - len(prefix)
        nll = []
        for start in starts:
            window = [*prefix, *text[start : start + step]]
            nll += [
                -log_softmax(logits_after(window[:i]))[window[i]] for i in range(1, len(window))
            ]
        seen = []
        found = scoring.perplexity(
            llm, text, size, add_bos=add_bos, on_window=lambda *args, seen=seen: seen.append(args)
        )
        assert (found.windows, found.tokens, found.bos) == (4, 36, add_bos)
        assert found.nll == pytest.approx(np.mean(nll))
        assert found.ppl == pytest.approx(np.exp(np.mean(nll)))
        assert [s[:2] for s in seen] == [(i, 4) for i in range(1, 5)]
        assert seen[-1][2] == pytest.approx(found.ppl)
    with pytest.raises(RequestError, match=r"43 tokens .* window of 44"):
        scoring.perplexity(llm, text, 44)
    with pytest.raises(RequestError, match="n_ctx=1"):
        scoring.perplexity(llm, text, 1)
