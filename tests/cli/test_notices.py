"""Settings without effect are said, in one line each; new flags reach the model."""

import json

import pytest

from fastllm.chat import ChatTemplate
from fastllm.cli import main
from tests import tiny_gguf
from tests.fakes import scripted


def notes(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("note: ") for line in lines)
    return lines


def test_sampling_flags_that_greedy_leaves_idle(fake, capsys):
    argv = ["run", "m", "hi", "-n", "1"]
    assert main.run([*argv, "--temp", "0", "--top-k", "3", "--seed", "4"]) == 0
    (line,) = notes(capsys)
    assert "--top-k, --seed changes nothing" in line
    assert main.run([*argv, "--temp", "0", "--presence-penalty", "1"]) == 0
    assert main.run([*argv, "--top-k", "3", "--seed", "4"]) == 0
    assert notes(capsys) == []


def test_variables_that_the_template_does_not_look_at(fake, tmp_path, capsys):
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "weather"}]')
    argv = ["run", "m", "hi", "-n", "1", "--tools", str(path), "--template-arg", "enable_thinkin=0"]
    assert main.run(argv) == 0
    first, second = notes(capsys)
    assert "--tools changes nothing" in first
    assert "no enable_thinkin: --template-arg" in second
    fake.template = ChatTemplate("{{ tools }}{{ messages[0].content if enable_thinkin == 0 }}")
    assert main.run(argv) == 0
    assert notes(capsys) == []


@pytest.mark.parametrize("no_chat", [False, True])
def test_system_without_a_template(fake, capsys, no_chat):
    fake.template = None if not no_chat else fake.template
    argv = ["run", "m", "hi", "-n", "1", "--system", "s", *(["--no-chat"] if no_chat else [])]
    assert main.run(argv) == 0
    (line,) = notes(capsys)
    assert "--system is not used" in line
    assert ("--no-chat" in line) == no_chat


def test_a_chat_without_a_template_has_no_memory(fake, stdin, capsys):
    fake.template = None
    stdin(b"/bye\n", terminal=True)
    assert main.run(["run", "m"]) == 0
    assert "nothing is remembered" in capsys.readouterr().err


def test_quant_of_a_quantized_file(fake, tmp_path, capsys):
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    out = tmp_path / "out.gguf"
    assert main.run(["quantize", str(source), str(out)]) == 0
    capsys.readouterr()
    assert main.run(["run", str(out), "hi", "-n", "1", "--quant", "q4_0"]) == 0
    (line,) = notes(capsys)
    assert "is quantized already (q8_0): --quant q4_0 changes nothing" in line
    assert main.run(["info", str(out), "--quant", "q4_0"]) == 0
    assert notes(capsys) == [line]
    assert main.run(["run", str(source), "hi", "-n", "1", "--quant", "q4_0"]) == 0
    assert notes(capsys) == []


def test_a_prompt_from_a_file(fake, stdin, tmp_path, capsys):
    path = tmp_path / "prompt"
    path.write_text("once\n")
    fake.model = scripted(b"a time", len("once\n") + 1)
    argv = ["run", "m", "--no-chat", "--temp", "0"]
    assert main.run([*argv, "-f", str(path)]) == 0
    assert capsys.readouterr().out == "a time\n"
    assert main.run([*argv, "-f", str(path), "more"]) == 2
    for missing in (str(path) + "x", ""):
        assert main.run([*argv, "-f", missing]) == 1
        assert f"{missing or repr(missing)} cannot be read" in capsys.readouterr().err


def test_stop_texts_and_penalties(fake, capsys):
    fake.model = scripted(b"one two three", len("once") + 1)
    argv = ["run", "m", "once", "--no-chat", "--temp", "0", "--json"]
    assert main.run([*argv, "--stop", "three", "--stop", " tw"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["finish_reason"]) == ("one", "stop")
    assert main.run([*argv, "-n", "4"]) == 0
    plain = json.loads(capsys.readouterr().out)["token_ids"]
    for flag in ("--presence-penalty", "--frequency-penalty"):
        # A reward, as large as is allowed: the first token comes again and again.
        assert main.run([*argv, "-n", "4", flag, "-100"]) == 0
        assert json.loads(capsys.readouterr().out)["token_ids"] == [plain[0]] * 4
    assert main.run([*argv, "--stop", ""]) == 2
    assert "--stop" in capsys.readouterr().err


def test_a_single_answer_has_no_turns_to_forget(fake, capsys):
    assert main.run(["run", "m", "hi", "-n", "1", "--no-context-shift"]) == 0
    (line,) = notes(capsys)
    assert "--no-context-shift is for a chat" in line
