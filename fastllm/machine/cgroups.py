"""The control groups this process is in, found through mountinfo because mounts move and bind.

Limits count on the whole path up: a container inside a limited service has the smaller of both. In
v2 every controller shares one tree, in v1 each has its own; both may be mounted at once.

References
----------
Linux ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/``, proc(5) on mountinfo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Group:
    """One of the process's groups.

    Attributes
    ----------
    version : int
        1 or 2.
    path : tuple of Path
        Folders from the process's own group up to the mount point, the last that can be seen.
    """

    version: int
    path: tuple[Path, ...]


def own_groups(controller: str, root: Path = ROOT) -> list[Group]:
    """Return the groups of this process that `controller` ("cpu", "memory") may limit.

    Parameters
    ----------
    controller : str
        Name as in /proc/self/cgroup.
    root : Path
        Stands for ``/``.

    Returns
    -------
    list of Group
        Empty without control groups; two where v1 and v2 are mounted side by side.
    """
    mounts = _mounts(controller, root)
    groups = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            version = 1
        elif hierarchy == "0" and not controllers:
            version = 2
        else:
            continue
        for mounted, top, mount in mounts:
            if mounted == version:
                groups.append(Group(version, _path_up(path, top, mount, root)))
                break
    return groups


def read_text(path: Path) -> str:
    """Return the text of a small file; empty where it is missing or hidden."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def read_int(path: Path) -> int | None:
    """Return the number in a file; None where there is none ("max", nothing, an error)."""
    text = read_text(path).strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _mounts(controller: str, root: Path) -> list[tuple[int, str, str]]:
    """Return (version, subtree shown, mount point) of the mounts that have the controller."""
    found = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 3:
            continue
        place = (_unescape(fields[3]), _unescape(fields[4]))
        if kind[0] == "cgroup2":
            found.append((2, *place))
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            found.append((1, *place))
    return found


def _path_up(path: str, top: str, mount: str, root: Path) -> tuple[Path, ...]:
    """Return the folders from the group up to the mount point.

    The mount shows the subtree `top` of the hierarchy. A path outside of it (a cgroup namespace
    that begins lower, or a bind mount) means that the mount point itself is all we can see.
    """
    mount_dir = root / mount.lstrip("/")
    top = top.rstrip("/")
    inside = path[len(top) :].strip("/") if (path + "/").startswith(top + "/") else ""
    parts = inside.split("/") if inside else []
    if ".." in parts or not mount_dir.joinpath(*parts).is_dir():
        parts = []
    return tuple(mount_dir.joinpath(*parts[:n]) for n in range(len(parts), -1, -1))


def _unescape(field: str) -> str:
    r"""Undo mountinfo's octal escapes (``\040`` is a blank)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
