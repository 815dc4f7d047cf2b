"""The folder of pulled models. A file has its final name only when it is whole and checked.

Layout, below ``$FASTLLM_HOME`` or ``$XDG_CACHE_HOME/fastllm`` (``~/.cache/fastllm``)::

    models/smollm2.gguf              a model of the registry
    models/hf/ORG/REPO/FILE.gguf     ``hf:ORG/REPO:FILE.gguf``
    models/hf/ORG/REPO/config.json   ``hf:ORG/REPO``, a whole checkpoint
    partial/                         what is being downloaded; safe to delete
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastllm.arguments import shown
from fastllm.environment import home
from fastllm.errors import DownloadError, FastLLMError, ModelNotFoundError

Progress = Callable[[str, float], None]
_COPY_BYTES = 1 << 20
# Errors that another try cannot mend, only another folder.
_IMPOSSIBLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENODEV),
)


@dataclass(frozen=True)
class Stored:
    """One pulled model: what the user calls it, where it lies, how large it is."""

    name: str
    path: Path
    nbytes: int


class Store:
    """Models on this machine.

    Parameters
    ----------
    root : Path or None
        Default: ``$FASTLLM_HOME``, else the user's cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() if root is None else root
        self.models = self.root / "models"
        self.partial = self.root / "partial"

    def find(self, name: str) -> Path | None:
        """Return the path of a pulled model, or None.

        ``hf:ORG/REPO`` also means the one GGUF file that was pulled from there.
        """
        path = self.path_of(name)
        try:
            if path.is_file() or (path / "config.json").is_file():
                return path
        except OSError:  # a name longer than the system's, a folder that is not ours to look at
            return None
        inside = sorted(path.rglob("*.gguf")) if name.startswith("hf:") else []
        return inside[0] if len(inside) == 1 else None

    def path_of(self, name: str) -> Path:
        """Return the final path of a model of this name, whether it is there or not."""
        if not name.startswith("hf:"):
            return self.models / f"{name}.gguf"
        repo, _, file = name[3:].partition(":")
        return self.models.joinpath("hf", *repo.split("/"), *(file.split("/") if file else ()))

    def __iter__(self) -> Iterator[Stored]:
        """Yield what is here, by name."""
        found = [
            Stored(p.stem, p, p.stat().st_size) for p in self.models.glob("*.gguf") if p.is_file()
        ]
        hub = self.models / "hf"
        for repo in hub.glob("*/*"):
            name = f"hf:{repo.parent.name}/{repo.name}"
            if (repo / "config.json").is_file():
                size = sum(p.stat().st_size for p in repo.rglob("*") if p.is_file())
                found.append(Stored(name, repo, size))
            for p in filter(Path.is_file, repo.rglob("*.gguf")):
                inside = p.relative_to(repo).as_posix()
                found.append(Stored(f"{name}:{inside}", p, p.stat().st_size))
        return iter(sorted(found, key=lambda s: s.name))

    def remove(self, name: str) -> int:
        """Delete a pulled model and return the bytes that it held.

        Raises
        ------
        ModelNotFoundError
            It is not here.
        FastLLMError
            The disk refused.
        """
        for stored in self:
            if stored.name == name:
                try:
                    if stored.path.is_dir():
                        shutil.rmtree(stored.path)
                    else:
                        stored.path.unlink()
                        _remove_empty(stored.path.parent, self.models)
                except OSError as error:
                    raise FastLLMError(
                        f"{error.filename or stored.path} cannot be deleted: {error.strerror}"
                    ) from error
                return stored.nbytes
        raise ModelNotFoundError(
            f"no pulled model is called {shown(name)}; `fastllm ls` lists those that are here"
        )

    @contextlib.contextmanager
    def downloading(self, name: str) -> Iterator[Path]:
        """Give a folder to download `name` into, to one process at a time.

        The folder stays when the download fails, so that the next try can go on from there; it is
        deleted when the block ends well. Errors of the operating system become `DownloadError`.
        """
        try:
            folder = self.partial / name.replace("/", "--").replace(":", "--")
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_suffix(".lock")):
                folder.mkdir(exist_ok=True)
                yield folder
                shutil.rmtree(folder, ignore_errors=True)
        except DownloadError:
            raise
        except OSError as error:
            raise DownloadError(describe(error, self.root)) from error

    def install(
        self,
        name: str,
        source: IO[bytes],
        nbytes: int,
        sha256: str | None,
        progress: Progress | None = None,
    ) -> Path:
        """Copy a file to its final name: written beside, hashed, synced, then renamed.

        Raises
        ------
        DownloadError
            The hash differs, or the disk refused. Nothing is left under the final name.
        """
        final = self.path_of(name)
        beside = final.with_name(f".{final.name}.{os.getpid()}.partial")
        digest, copied = hashlib.sha256(), 0
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            check_space(final.parent, nbytes)
            with open(beside, "wb") as out:
                while piece := source.read(_COPY_BYTES):
                    out.write(piece)
                    digest.update(piece)
                    copied += len(piece)
                    if progress is not None:
                        progress(f"installing {name}", copied / max(nbytes, 1))
                out.flush()
                os.fsync(out.fileno())
            _check_hash(name, digest.hexdigest(), sha256)
            os.replace(beside, final)
        except DownloadError:
            raise
        except OSError as error:
            raise DownloadError(describe(error, final.parent)) from error
        finally:
            beside.unlink(missing_ok=True)
        return final

    def adopt(self, name: str, path: Path, sha256: str | None = None) -> Path:
        """Move a whole file or folder of the same disk to its final name.

        Raises
        ------
        DownloadError
            The hash of the file differs (it is deleted then), or the disk refused.
        """
        final = self.path_of(name)
        if sha256 is not None:
            try:
                _check_hash(name, _sha256(path), sha256)
            except DownloadError:
                path.unlink()
                raise
        final.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and final.is_dir():
            # GGUF files of the same repository may lie there already; they stay.
            for item in path.iterdir():
                os.replace(item, final / item.name)
        else:
            os.replace(path, final)
        return final


def _check_hash(name: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise DownloadError(
            f"{name}: sha256 is {found}, expected {expected}; the source is damaged or was "
            "changed, nothing was installed"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def check_space(folder: Path, nbytes: int) -> None:
    """Refuse a download that cannot fit, before the first byte of it arrives.

    Raises
    ------
    DownloadError
        Less than `nbytes` are free.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise DownloadError(
            f"no space in {folder}: {nbytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free; "
            "free some, or let FASTLLM_HOME name a folder on another disk"
        )


def describe(error: OSError, where: Path) -> str:
    """Return the one line for an error of the operating system during a download."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left in {where}: free some, or let FASTLLM_HOME name another folder"
    if error.errno in _IMPOSSIBLE:
        return f"{where} cannot be written ({error.strerror}): let FASTLLM_HOME name another folder"
    return f"download into {where} failed: {error}; try again"


def _remove_empty(folder: Path, stop: Path) -> None:
    with contextlib.suppress(OSError):
        while folder != stop:
            folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; a second process waits. Released by the system if we die."""
    try:
        import fcntl
    except ImportError:  # Windows: two pulls at once only waste one of the downloads.
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
