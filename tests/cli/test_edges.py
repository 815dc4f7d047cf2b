"""Real processes at the edges: closed and full streams, impossible folders, signals, locales.

Always one line on stderr, the right exit code, and no traceback.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastllm.cli import main
from tests import tiny_gguf

REPOSITORY = Path(main.__file__).parents[2]
FASTLLM = [sys.executable, "-m", "fastllm"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf", tokenizer=True)


def shell(command, **options):
    """Run `fastllm ARGUMENTS REDIRECTIONS` in a shell; returns (exit code, stdout, stderr)."""
    line = " ".join([sys.executable, "-m", "fastllm", command])
    options.setdefault("stdin", subprocess.DEVNULL)
    env = {**os.environ, **options.pop("env", {})}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, check=False, env=env, timeout=120, **options
    )
    return done.returncode, done.stdout, done.stderr.decode()


def assert_one_line(err, *parts):
    assert err.startswith("fastllm: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
@pytest.mark.parametrize("command", ["pull", "--help", "run --help", "--version", "ls --json"])
def test_a_stdout_that_cannot_be_written(command, redirection, reason):
    code, _, err = shell(f"{command} {redirection}")
    assert code == 1
    assert_one_line(err, "stdout cannot be written", reason)


def test_a_closed_stdout_is_no_file_of_ours(tiny, tmp_path):
    # The lowest free descriptor goes to the next file that is opened.
    out = tmp_path / "out.gguf"
    code, _, err = shell(f"quantize {tiny} {out} >&- <&-")
    assert (code, err.count("\n")) == (0, 1)
    assert shell(f"info {out}")[0] == 0


@pytest.mark.parametrize("redirection", ["<&-", "0>/dev/null"])
@pytest.mark.parametrize("command", ["run {}", "run {} -", "tokenize {}", "perplexity {} -"])
def test_a_stdin_that_cannot_be_read(tiny, command, redirection):
    code, out, err = shell(command.format(tiny) + " " + redirection)
    assert (code, out) == (1, b"")
    assert_one_line(err, "stdin cannot be read: Bad file descriptor")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_cannot_be_written_changes_nothing(tiny, redirection):
    assert shell(f"tokenize {tiny} ab --json {redirection}")[:2] == (
        0,
        b'{"tokens": [1, 39], "pieces": ["<s>", "ab"], "count": 2}\n',
    )
    assert shell(f"info nothing {redirection}")[0] == 1
    assert shell(f"fly {redirection}")[0] == 2


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/nothing/x"])
def test_a_home_that_cannot_be(home):
    env = {"FASTLLM_HOME": home}
    assert shell("ls", env=env)[0] == 0
    code, _, err = shell("rm x", env=env)
    assert code == 1
    assert_one_line(err, "no pulled model is called 'x'")
    for command in ("pull smollm2", "pull hf:a/b:c.gguf", "warmup"):
        code, _, err = shell(command, env={**env, "HF_HUB_OFFLINE": "1"})
        assert code == 1
        assert_one_line(err, "cannot be written", "FASTLLM_HOME")


def test_no_home_at_all(monkeypatch, capsys):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTLLM_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert main.run(["ls"]) == 1
    assert_one_line(capsys.readouterr().err, "FASTLLM_HOME")


def test_rm_where_the_disk_refuses(monkeypatch, capsys):
    from fastllm.hub.store import Store

    path = Store().path_of("tiny")
    path.parent.mkdir(parents=True)
    path.touch()

    def refuse(self, **_):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main.run(["rm", "tiny"]) == 1
    assert_one_line(capsys.readouterr().err, str(path), "cannot be deleted: Read-only file system")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("./nothing.gguf", "this path does not exist"),
        ("/no/such/folder", "this path does not exist"),
        ("nothing.gguf", "this path does not exist"),
        ("/dev/null/x.gguf", "Not a directory"),
        ("/dev/null", "is neither a file nor a folder"),
        (f"/{'x' * 300}.gguf", "File name too long"),
        ("~nobody-of-this-name/x.gguf", "home directory"),
        ("links/dangling.gguf", "link to a path that does not exist"),
        (".", "no *.gguf"),
        ("''", "no model ''"),
    ],
)
def test_a_path_that_is_no_model(tmp_path, model, reason):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/dangling.gguf").symlink_to(tmp_path / "gone")
    code, out, err = shell(f"info {model}", cwd=tmp_path)
    assert (code, out) == (1, b"")
    assert_one_line(err, reason)


def test_ls_passes_over_what_is_no_file(tmp_path):
    models = tmp_path / "models"
    (models / "folder.gguf").mkdir(parents=True)
    (models / "dangling.gguf").symlink_to(tmp_path / "gone")
    assert shell("ls --json", env={"FASTLLM_HOME": str(tmp_path)})[:2] == (0, b"[]\n")


def test_offline_is_said_at_once(tmp_path):
    env = {"FASTLLM_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("hf:a/b", "hf:a/b:c.gguf"):
        code, _, err = shell(f"pull {name}", env=env)
        assert code == 1
        assert_one_line(err, name, "HF_HUB_OFFLINE is set")


def test_without_a_network_one_line(tmp_path):
    # Port 9 of this machine: nobody answers, at once.
    env = {"FASTLLM_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "*"}
    for name in ("hf:a/b", "hf:a/b:c.gguf"):
        code, _, err = shell(f"pull {name}", env={**env, "HF_HUB_OFFLINE": "0"})
        assert code == 1
        assert_one_line(err, name, "127.0.0.1 cannot be reached")


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["ascii streams", "C locale"],
)
def test_locales_without_utf8(tmp_path, tiny, env):
    path = tmp_path / "möbel.gguf"
    path.symlink_to(tiny)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "möbel.gguf").touch()
    code, out, err = shell("ls --json", env={**env, "FASTLLM_HOME": str(tmp_path)})
    assert (code, err) == (0, "")
    assert len(json.loads(out)) == 1
    code, out, err = shell(f"info {path} --json", env=env)
    assert (code, err) == (0, "")
    json.loads(out)
    code, out, err = shell("tokenize " + str(tiny) + " 'é' --json", env=env)
    assert code in (0, 1)
    assert "Traceback" not in err
    assert "is not UTF-8" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        "run {} x -n 99999999999999999999",
        "run {} x -c 99999999999999999999999",
        "run {} x -b 99999999999999999999999",
        "run {} x --seed -2",
        "run {} x --temp nan",
        "run {} x --top-k 99999999999999999999",
        "run {} x --stop ''",
        "run {} x --presence-penalty inf",
    ],
)
def test_numbers_out_of_range(tiny, arguments):
    code, out, err = shell(arguments.format(tiny))
    assert code in (1, 2)
    assert out == b""
    assert "Traceback" not in err
    if code == 1:
        assert_one_line(err)


ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_signals_while_it_works(number, code):
    # `perplexity` reads stdin to its end before anything else: it is there for certain.
    with subprocess.Popen(
        [*FASTLLM, "perplexity", "m", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        # The pipe holds 64 KiB: when more was taken, it is reading.
        process.stdin.write(b"x" * (1 << 20))
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(60) == code
        err = process.stderr.read()
        process.stdin.close()
    assert err == (b"interrupted\n" if code == 130 else b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_it_starts(tmp_path, number, code):
    # The first library that is imported interrupts us.
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    # The folder itself goes first, before an installed package beside the true library.
    found = shell("--version", env={"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path)
    assert found == (code, b"", "interrupted\n" if code == 130 else "")


def test_nohup_is_honoured():
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from fastllm.cli import process; process.prepare()\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"here\n")


def test_an_interrupted_rewrite_leaves_nothing(tmp_path, monkeypatch, capsys):
    from fastllm.formats import quantize_file

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal comes before this line")

    monkeypatch.setattr(quantize_file, "quantize", interrupt)
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    assert main.run(["quantize", str(source), str(tmp_path / "out.gguf")]) == 130
    assert os.listdir(tmp_path) == ["tiny.gguf"]
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("code", "shown"), [(0, "text hook\n"), (1, "text hook\n"), (130, "")])
def test_the_end_writes_what_is_left_and_runs_exit_hooks(python, code, shown):
    done = python(
        "import atexit, io, sys\n"
        "from fastllm.cli import process\n"
        "sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w'))\n"  # whatever PYTHONUNBUFFERED says
        "atexit.register(print, 'hook')\n"
        "print('text', end=' ')\n"
        f"process.leave({code})\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, shown, "")
