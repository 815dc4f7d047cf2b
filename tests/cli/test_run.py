import json
import os
import signal

import pytest

from fastllm import LLM
from fastllm.chat import ChatTemplate
from fastllm.cli import main
from fastllm.request import LARGEST, REAL_RANGES
from tests.fakes import MARK, scripted


def chat_length(text):
    """Tokens of the fake template's prompt for one user message."""
    return len(f"user:{text}\n") + 2


def test_a_prompt_is_answered_on_stdout(fake, capsys):
    fake.model = scripted(b"because", chat_length("why?"))
    assert main.run(["run", "m", "why?", "--temp", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "because\n"
    assert captured.err == ""
    llm, _ = fake[0]
    assert llm._runner.closed


def test_a_context_that_memory_cut_is_said(fake, capsys, monkeypatch):
    monkeypatch.setattr(LLM, "n_ctx_wanted", 8192)
    assert main.run(["run", "m", "why?", "-n", "1"]) == 0
    assert capsys.readouterr().err == (
        "note: memory is short: a context of 512 tokens instead of 8192 (-c asks for another)\n"
    )


def test_options_reach_the_model(fake, capsys):
    argv = ["run", "m", "hi", "-n", "3", "-c", "64", "-t", "2", "-b", "8", "--quant", "q8_0"]
    assert main.run([*argv, "--seed", "1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    _, options = fake[0]
    assert options["n_ctx"] == 64
    assert options["n_threads"] == 2
    assert options["n_batch"] == 8
    assert options["quant"] == "q8_0"
    assert first["completion_tokens"] == len(first["token_ids"]) == 3
    assert first["finish_reason"] == "length"
    assert first["prompt_tokens"] == chat_length("hi")
    assert first["model"] == "m"
    assert "decode_tps" in first["timings"]
    assert main.run([*argv, "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == first["text"]


def test_no_chat_continues_the_text_itself(fake, capsys):
    fake.model = scripted(b" upon a time", len("once") + 1)
    assert main.run(["run", "m", "once", "--no-chat", "--temp", "0"]) == 0
    assert capsys.readouterr().out == " upon a time\n"


def test_a_model_without_template_continues_the_text(fake, capsys):
    fake.template = None
    fake.model = scripted(b"!", len("once") + 1)
    assert main.run(["run", "m", "once", "--temp", "0"]) == 0
    assert capsys.readouterr().out == "!\n"


def test_stdin_is_a_prompt(fake, stdin, capsys):
    stdin("wörld\n".encode())
    fake.model = scripted(b"ok", len("user:wörld\n".encode()) + 2)
    assert main.run(["run", "m", "--temp", "0"]) == 0
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("argv", [["run", "m"], ["run", "m", "-"]])
def test_stdin_that_is_not_utf8_is_refused_before_the_load(fake, stdin, capsys, argv):
    stdin(b"abc\xff\n")
    assert main.run(argv) == 1
    assert "not UTF-8: byte 0xff at offset 3" in capsys.readouterr().err
    assert not fake


def test_an_argument_that_is_not_utf8(fake, capsys):
    assert main.run(["run", "m", "a\udcff"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_an_empty_prompt(fake, stdin, capsys):
    stdin(b"")
    assert main.run(["run", "m"]) == 1
    assert "prompt is empty" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context(fake, capsys):
    assert main.run(["run", "m", "word " * 30, "-c", "50"]) == 1
    captured = capsys.readouterr()
    assert "holds 50" in captured.err
    assert captured.out == ""


FLAGS = {
    "temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p",
    "repetition_penalty": "--repeat-penalty", "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty", "seed": "--seed", "max_tokens": "-n",
}  # fmt: skip


@pytest.mark.parametrize("field", FLAGS)
def test_what_sampling_cannot_be_is_wrong_usage_and_named_by_its_flag(fake, capsys, field):
    low, high = REAL_RANGES.get(field) or (0, LARGEST[field])
    wrong = [str(high + 1), str(low - 2), "x", *(["nan", "inf"] if field in REAL_RANGES else [])]
    for value in wrong:
        assert main.run(["run", "m", "hi", FLAGS[field], value]) == 2
        assert FLAGS[field] in capsys.readouterr().err
    assert not fake
    for value in (low, min(high, 40) if field == "max_tokens" else high):
        assert main.run(["run", "m", "hi", "-n", "1", FLAGS[field], str(value)]) == 0


def test_a_seed_of_minus_one_is_a_fresh_one(fake, capsys):
    argv = ["run", "m", "hi", "-n", "40", "--temp", "5", "--json", "--seed"]
    answers = set()
    for seed in ("-1", "-1", "-1"):
        assert main.run([*argv, seed]) == 0
        answers.add(json.loads(capsys.readouterr().out)["text"])
    assert len(answers) > 1


def test_verbose_adds_figures_on_stderr(fake, capsys):
    assert main.run(["run", "m", "hi", "-n", "2", "-v"]) == 0
    captured = capsys.readouterr()
    assert "tok/s" in captured.err
    assert "tok/s" not in captured.out


def say(history):
    """A model that says how many turns it sees; its answer begins after the last mark."""
    tokens = history.tolist()
    start = len(tokens) - tokens[::-1].index(MARK)
    return scripted(b"turn %d" % (tokens.count(MARK) // 2), start)(history)


def test_a_chat_remembers_and_obeys(fake, stdin, capsys):
    fake.model = say
    lines = ["hello", "again", "/help", "/what", "/clear", "fresh", "/system be kind", "x"]
    lines += ['"""two', 'lines"""', "/bye", "never read"]
    stdin("\n".join(lines).encode(), terminal=True)
    assert main.run(["run", "m", "--temp", "0"]) == 0
    captured = capsys.readouterr()
    answers = [line for line in captured.out.splitlines() if line]
    # user, assistant, user: the second turn holds three messages and the opening of a fourth.
    assert answers == ["turn 1", "turn 2", "turn 1", "turn 1", "turn 2"]
    assert "/clear" in captured.err
    assert "no command /what" in captured.err


def test_a_chat_survives_an_overflow(fake, stdin, capsys):
    fake.model = say
    stdin(b"hello\n" + b"x" * 200 + b"\nhi\n", terminal=True)
    assert main.run(["run", "m", "--temp", "0", "-c", "100"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("\n")[:2] == ["turn 1", "turn 2"]
    assert "holds 100" in captured.err


LONG_CHAT = [b"a" * 25, b"b" * 25, b"c" * 25]


def test_a_chat_forgets_its_oldest_turns_and_says_so(fake, stdin, capsys):
    fake.model = say
    stdin(b"\n".join(LONG_CHAT), terminal=True)
    assert main.run(["run", "m", "--temp", "0", "-c", "160", "--system", "kind"]) == 0
    captured = capsys.readouterr()
    # system, user: 2 marks and the opening; the third turn again has one earlier turn only
    assert captured.out.split() == ["turn", "1", "turn", "2", "turn", "2"]
    assert "the 2 oldest messages are forgotten" in captured.err


def test_a_chat_keeps_its_turns_when_told_to(fake, stdin, capsys):
    fake.model = say
    stdin(b"\n".join([*LONG_CHAT, b"d" * 25]), terminal=True)
    argv = ["run", "m", "--temp", "0", "-c", "160", "--no-context-shift", "--system", "kind"]
    assert main.run(argv) == 0
    captured = capsys.readouterr()
    assert "forgotten" not in captured.err
    assert "holds 160" in captured.err


def test_an_answer_that_ends_with_the_context_says_so(fake, capsys):
    assert main.run(["run", "m", "hi", "-c", "30"]) == 0
    assert "the context of 30 tokens is full" in capsys.readouterr().err
    assert main.run(["run", "m", "hi", "-c", "30", "-n", "3"]) == 0
    assert capsys.readouterr().err == ""


def test_tools_and_template_arguments(fake, capsys, tmp_path):
    fake.template = ChatTemplate("{{ tools[0].name }}{{ 'T' if a else 'F' }}{{ b }}")
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "weather"}]')
    argv = ["run", "m", "hi", "-n", "1", "--json", "--tools", str(path)]
    argv += ["--template-arg", "a=true", "--template-arg", "b=text"]
    assert main.run(argv) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len("weatherTtext")


@pytest.mark.parametrize(
    ("text", "extra", "words"),
    [
        ("{", [], "not JSON"),
        ("5", [], "tools must be a list"),
        ("[{}]", [], r"tools[0] needs a name"),
        ("[]", ["--template-arg", "x"], "must be NAME=VALUE"),
    ],
)
def test_bad_tools_are_refused_before_the_load(fake, capsys, tmp_path, text, extra, words):
    path = tmp_path / "tools.json"
    path.write_text(text)
    assert main.run(["run", "m", "hi", "--tools", str(path), *extra]) == 1
    assert words in capsys.readouterr().err
    assert not fake


def test_ctrl_c_stops_the_answer_and_not_the_chat(fake, stdin, capsys):
    calls = []

    def model(history):
        calls.append(len(history))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return scripted(b"a" * 300, 1)(history)

    fake.model = model
    stdin(b"go\n/bye\n", terminal=True)
    before = signal.getsignal(signal.SIGINT)
    assert main.run(["run", "m", "--temp", "0"]) == 0
    # The signal is taken between two pieces of text, by another thread than the one that computes.
    out = capsys.readouterr().out
    assert out == "a" * (len(out) - 1) + "\n"
    assert 3 <= len(out) < 300
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_ends_a_single_answer_with_130(fake, capsys):
    def model(history):
        os.kill(os.getpid(), signal.SIGINT)  # taken by the main thread, as at a terminal
        return scripted(b"a" * 300, 1)(history)

    fake.model = model
    assert main.run(["run", "m", "hi"]) == 130


def test_a_special_token_in_the_prompt_stays_text(fake, capsys):
    assert main.run(["run", "m", "<mark>", "-n", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == chat_length("<mark>")
