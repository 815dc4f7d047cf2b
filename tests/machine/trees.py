"""Fake /proc and /sys trees: what a machine, a container or a service looks like from inside."""

from __future__ import annotations

from pathlib import Path

V2_MOUNT = "31 23 0:28 {top} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {top} {mount} rw,nosuid - cgroup cgroup rw,{controller}\n"


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below `root` and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, group: str, top: str = "/", mount: str = "/sys/fs/cgroup", **files: str) -> Path:
    """A v2 hierarchy; `files` maps "a/b/memory__max" to text, below the mount."""
    write(
        root,
        {
            "proc/self/cgroup": f"0::{group}\n",
            "proc/self/mountinfo": V2_MOUNT.format(top=top, mount=mount),
        },
    )
    return _fill(root / mount.strip("/"), files, root)


def v1(root: Path, controller: str, group: str, top: str = "/", **files: str) -> Path:
    """A v1 hierarchy of one controller."""
    mount = f"/sys/fs/cgroup/{controller}"
    write(
        root,
        {
            "proc/self/cgroup": f"9:name=systemd:/x\n4:{controller}:{group}\n",
            "proc/self/mountinfo": V1_MOUNT.format(top=top, mount=mount, controller=controller),
        },
    )
    return _fill(root / mount.strip("/"), files, root)


def _fill(mount: Path, files: dict[str, str], root: Path) -> Path:
    mount.mkdir(parents=True, exist_ok=True)
    write(mount, {name.replace("__", "."): text + "\n" for name, text in files.items()})
    return root
