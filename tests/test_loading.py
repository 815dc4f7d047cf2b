"""From a file to an LLM; the runner is a fake, what lies before it is real."""

import pytest

from fastllm import LLM, SamplingParams, errors
from fastllm.options import LoadOptions
from tests import tiny_gguf
from tests.fakes import FakeRunner


@pytest.fixture
def runners(monkeypatch):
    made = []

    def build(checkpoint, options, *, progress):
        runner = FakeRunner(
            options.n_ctx or 64, max_batch_tokens=options.n_batch, vocab_size=tiny_gguf.VOCAB
        )
        runner.loaded = (checkpoint.path, options)
        runner.model = lambda history: [float(i == 5) for i in range(tiny_gguf.VOCAB)]
        made.append(runner)
        return runner

    monkeypatch.setattr("fastllm.step.runner.Runner", build)
    return made


def test_a_model_without_a_tokenizer_loads_for_token_ids(tmp_path, runners):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    with LLM(path, n_threads=3, n_ctx=32, n_batch=8, quant="q8_0", kv_type="f32") as llm:
        assert llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=2))[0].token_ids == [
            5,
            5,
        ]
        with pytest.raises(errors.RequestError, match=r"m\.gguf has no tokenizer"):
            llm.generate("text")
        assert not llm.has_chat_template
    assert runners[0].loaded == (str(path), LoadOptions(3, 32, 8, "q8_0", "f32"))


def test_a_model_with_a_tokenizer_speaks(tmp_path, runners):
    with LLM(tiny_gguf.write(tmp_path / "m.gguf", tokenizer=True)) as llm:
        found = llm.generate("abc", SamplingParams(temperature=0, max_tokens=2))[0]
    assert found.prompt_token_ids[0] == 1
    assert found.text == "cc"


def test_a_vocabulary_alone_tokenizes_and_does_not_load(tmp_path, runners):
    path = tiny_gguf.write(tmp_path / "v.gguf", weights=False, tokenizer=True)
    tokenizer = LLM.tokenizer_of(path)
    ids = tokenizer.encode("bad", add_special_tokens=False)
    assert tokenizer.decode(ids) == "bad"
    with pytest.raises(errors.RequestError, match="vocabulary and no weights"):
        LLM(path)
    assert not runners


def test_what_is_no_model(tmp_path):
    with pytest.raises(errors.ModelNotFoundError):
        LLM(tmp_path / "nothing.gguf")
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 100)
    with pytest.raises(errors.FormatError):
        LLM(junk)
