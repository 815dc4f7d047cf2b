"""Fetch from Hugging Face with its own client: its settings, its token, its resumed downloads."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from fastllm.arguments import shown
from fastllm.errors import DownloadError, RequestError
from fastllm.hub.network import check_reachable
from fastllm.hub.store import Store, check_space, describe

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$", re.ASCII)
# What a checkpoint is made of; other frameworks' copies of the weights stay where they are.
_CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
# Of several GGUF files the first of these kinds is taken: small and still close to the original.
_PREFERRED = ("q4_k_m", "q4_k_s", "q4_0", "q5_k_m", "q8_0")


def split(spec: str) -> tuple[str, str]:
    """Return repository and file ("" for none) of ``hf:ORG/REPO[:FILE]``.

    Raises
    ------
    RequestError
        It has another form.
    """
    repo, _, file = spec.removeprefix("hf:").partition(":")
    parts = Path(file).parts
    if not _REPO.match(repo) or ".." in (*parts, *repo.split("/")) or os.path.isabs(file):
        raise RequestError(f"{shown(spec)} is not of the form hf:ORG/REPO or hf:ORG/REPO:FILE")
    return repo, file


def fetch_file(store: Store, name: str, repo: str, file: str, sha256: str | None = None) -> Path:
    """Download one file of a repository and keep it under `name`.

    Raises
    ------
    DownloadError
        Not reachable, not there, not allowed, no space, or another hash.
    """
    with store.downloading(f"hf:{repo}:{file}") as folder:
        try:
            _prepare_client()
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(repo, file, local_dir=folder)
        except Exception as error:  # the client raises a dozen unrelated kinds
            raise _explained(error, f"{repo}:{file}", store) from error
        return store.adopt(name, Path(path), sha256)


def fetch_checkpoint(store: Store, name: str, repo: str) -> Path:
    """Download a whole checkpoint, or the best GGUF file of a repository that has only those.

    Raises
    ------
    DownloadError
        As `fetch_file`; also when the repository holds no model.
    """
    try:
        _prepare_client()
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    except Exception as error:
        raise _explained(error, repo, store) from error
    if any(file.endswith(".safetensors") for file in sizes):
        return _fetch_folder(store, name, repo, sizes)
    file = choose_gguf(repo, list(sizes))
    stored = store.find(f"hf:{repo}:{file}")
    return stored or fetch_file(store, f"hf:{repo}:{file}", repo, file)


def choose_gguf(repo: str, files: list[str]) -> str:
    """Return the GGUF file to take of a repository.

    Raises
    ------
    DownloadError
        There is none, or several and none of a preferred kind; the text lists them.
    """
    ggufs = sorted(file for file in files if file.lower().endswith(".gguf"))
    if not ggufs:
        raise DownloadError(f"hf:{repo} holds neither safetensors nor GGUF files")
    if len(ggufs) == 1:
        return ggufs[0]
    for kind in _PREFERRED:
        matching = [file for file in ggufs if kind in file.lower()]
        if len(matching) == 1:
            return matching[0]
    shown = ", ".join(ggufs[:8]) + (", ..." if len(ggufs) > 8 else "")
    raise DownloadError(f"hf:{repo} holds several models; name one as hf:{repo}:FILE of {shown}")


def _prepare_client() -> None:
    """Refuse at once where there is no network, and keep the client's log lines for ourselves."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError("HF_HUB_OFFLINE is set, nothing is fetched")
    check_reachable(constants.ENDPOINT)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _fetch_folder(store: Store, name: str, repo: str, sizes: dict[str, int]) -> Path:
    from huggingface_hub import snapshot_download

    wanted = sum(n for file, n in sizes.items() if file.endswith(".safetensors"))
    with store.downloading(name) as folder:
        check_space(folder, wanted)
        inside = folder / "checkpoint"
        try:
            snapshot_download(repo, local_dir=inside, allow_patterns=_CHECKPOINT_FILES)
        except Exception as error:
            raise _explained(error, repo, store) from error
        return store.adopt(name, inside)


def _explained(error: Exception, what: str, store: Store) -> DownloadError:
    """Return our one line for an error of the client."""
    kind = type(error).__name__
    if isinstance(error, DownloadError):
        return DownloadError(f"hf:{what}: {error}")
    if kind == "GatedRepoError":
        reason = "its owner asks for consent: accept on its page, then run `hf auth login`"
    elif kind in ("RepositoryNotFoundError", "RemoteEntryNotFoundError", "EntryNotFoundError"):
        reason = "no such repository or file (or it is private: run `hf auth login`)"
    elif kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled") or "Connect" in kind:
        reason = "Hugging Face cannot be reached; check the network and try again, it resumes"
    elif isinstance(error, OSError) and error.errno is not None:
        reason = describe(error, store.root)
    else:
        first_line = (str(error).strip().splitlines() or [""])[0]
        reason = f"{kind}: {first_line}"
    return DownloadError(f"hf:{what}: {reason}")
