import contextlib
import errno
import hashlib
import io
import os
import threading

import pytest

from fastllm.errors import DownloadError, ModelNotFoundError
from fastllm.hub import store as store_module
from fastllm.hub.store import Store

BYTES = b"GGUF" + bytes(range(256)) * 20
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def install(store, raw=BYTES, sha256=SHA256, name="tiny"):
    return store.install(name, io.BytesIO(raw), len(BYTES), sha256)


def files(store):
    return [p for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_install_find_list_remove(store):
    assert store.find("tiny") is None
    path = install(store)
    assert path.read_bytes() == BYTES
    assert store.find("tiny") == path
    assert [(s.name, s.path, s.nbytes) for s in store] == [("tiny", path, len(BYTES))]
    assert store.remove("tiny") == len(BYTES)
    assert files(store) == []
    with pytest.raises(ModelNotFoundError, match="'tiny'"):
        store.remove("tiny")


@pytest.mark.parametrize("raw", [BYTES[:-1], BYTES[:-1] + b"!", b""])
def test_a_wrong_hash_leaves_nothing(store, raw):
    with pytest.raises(DownloadError, match="sha256"):
        install(store, raw)
    assert files(store) == []


def test_an_interrupted_copy_leaves_an_old_model_as_it_was(store):
    install(store)

    class Breaks(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "the cable")

    with pytest.raises(DownloadError, match="the cable"):
        store.install("tiny", Breaks(), len(BYTES), SHA256)
    assert [p.read_bytes() for p in files(store)] == [BYTES]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_nothing(store, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        real_open = open

        def opened(path, mode="r", **options):
            file = real_open(path, mode, **options)
            if "w" not in mode:
                return file
            file.close()

            class Full(io.BytesIO):
                write = fail

            return Full()

        monkeypatch.setattr(store_module, "open", opened, raising=False)
    with pytest.raises(DownloadError, match=r"no space left in .*FASTLLM_HOME"):
        install(store)
    assert files(store) == []


def test_too_little_space_is_found_before_the_first_byte(store, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="no space"):
        install(store)
    assert files(store) == []


def test_hub_models_have_their_own_names(store):
    folder = store.path_of("hf:org/repo")
    folder.mkdir(parents=True)
    assert store.find("hf:org/repo") is None  # nothing whole in it
    (folder / "a.gguf").write_bytes(b"12")
    # The one GGUF file of a repository is what its bare name means.
    assert store.find("hf:org/repo") == store.find("hf:org/repo:a.gguf") == folder / "a.gguf"
    (folder / "config.json").write_text("{}")
    assert store.find("hf:org/repo") == folder
    assert [(s.name, s.nbytes) for s in store] == [("hf:org/repo", 4), ("hf:org/repo:a.gguf", 2)]
    store.remove("hf:org/repo:a.gguf")
    assert store.remove("hf:org/repo") == 2
    assert list(store) == []


def test_adopting_a_file_and_a_folder(store, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(BYTES)
    bad.write_bytes(BYTES[1:])
    assert store.adopt("tiny", good, SHA256).read_bytes() == BYTES
    with pytest.raises(DownloadError, match="sha256"):
        store.adopt("other", bad, SHA256)
    assert not bad.exists()
    assert store.find("other") is None
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (store.path_of("hf:o/r")).mkdir(parents=True)
    (store.path_of("hf:o/r") / "x.gguf").write_bytes(b"1")
    store.adopt("hf:o/r", folder)
    assert sorted(p.name for p in store.path_of("hf:o/r").iterdir()) == ["config.json", "x.gguf"]


def test_one_download_at_a_time_and_a_failed_one_is_kept(store):
    with contextlib.suppress(DownloadError), store.downloading("hf:a/b") as folder:
        (folder / "half").write_bytes(b"1")
        raise OSError(errno.EIO, "gone")
    with store.downloading("hf:a/b") as folder:
        assert (folder / "half").exists()
        seen = []

        def second():
            with store.downloading("hf:a/b") as again:
                seen.append((again / "half").exists())

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        assert seen == []
    thread.join(10)
    assert seen == [False]  # the first one ended well and was cleaned up


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match="cannot be written"):
        install(Store(tmp_path / "home"))
