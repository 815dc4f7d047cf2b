"""The real model, end to end: text, perplexity, and the README's own examples."""

import re
from pathlib import Path

import pytest

from fastllm import LLM, SamplingParams
from fastllm.scoring import perplexity

pytestmark = pytest.mark.model
ROOT = Path(__file__).parent.parent

# LICENSE, first 1,024 tokens, windows of 256: the same weights in float32 by tests/naive.
LICENSE_PERPLEXITY = 21.866
# Activations rounded to eight bits cost 0.25 % of it, a quarter of this.
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def llm(smollm2):
    with LLM(smollm2, n_ctx=1024) as loaded:
        yield loaded


def test_greedy_text(llm):
    """Each of these tokens leads by 0.8 or more in float32: rounding cannot turn one."""
    params = SamplingParams(temperature=0, max_tokens=5)
    answers = llm.generate(["The capital of France is", "The capital of France is"], params)
    assert [a.text for a in answers] == [" Paris.\n\nThe"] * 2
    with llm.stream("The capital of France is", params) as stream:
        assert "".join(chunk.text for chunk in stream) == " Paris.\n\nThe"


def test_perplexity(llm):
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    ids = llm.tokenizer.encode(text, add_special_tokens=False)[:1024]
    found = perplexity(llm, ids, 256)
    assert found.tokens == 4 * 255
    assert found.ppl == pytest.approx(LICENSE_PERPLEXITY, rel=TOLERANCE)


def test_the_plan_is_what_a_process_takes(smollm2, python):
    """All of the plan but the process itself is exact; so the process is what it says."""
    code = """
import sys
from fastllm import LLM, SamplingParams
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.machine.memory import peak_rss_bytes
from fastllm.models.bind import bind
from fastllm.options import LoadOptions
from fastllm.step.plan import Plan
options = dict(n_ctx=128, n_batch=64, n_threads=2)
with LLM(sys.argv[1], **options) as llm:
    llm.chat([{"role": "user", "content": "Say hello."}], SamplingParams(max_tokens=2))
    peak = peak_rss_bytes()
options = LoadOptions(**options)
print(peak, Plan(bind(open_checkpoint(sys.argv[1])), options, 2).ledger(128).total)
"""
    done = python("-c", code, str(smollm2))
    peak, planned = map(int, done.stdout.split())
    assert 0.75 * planned < peak < planned


def test_a_chat_ends_by_itself_and_knows_its_history(llm):
    params = SamplingParams(temperature=0, max_tokens=100)
    messages = [{"role": "user", "content": "Say hello."}]
    first = llm.chat(messages, params)
    assert first.finish_reason == "stop"
    assert "<|im_end|>" not in first.text
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Again."},
    ]
    second = llm.chat(messages, params)
    assert second.timings.cached_tokens >= len(first.prompt_token_ids)
    llm.reset()
    assert llm.chat(messages, params).token_ids == second.token_ids


def readme_examples():
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )


@pytest.mark.parametrize("number", range(len(readme_examples())))
def test_the_readme_runs(number, python):
    done = python("-c", readme_examples()[number])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
