"""Finding one's own control group: v1, v2, both, namespaces, bind mounts, nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.machine.cgroups import Group, own_groups, read_int
from fastllm.machine.cpus import cgroup_quota, default_threads
from fastllm.machine.memory import available_bytes, limit_bytes
from tests.machine.trees import V1_MOUNT, V2_MOUNT, v1, v2, write


def test_v2_path_up(tmp_path: Path) -> None:
    root = v2(tmp_path, "/system.slice/llm.service", **{"system.slice/llm.service/x": ""})
    mount = root / "sys/fs/cgroup"
    slice_ = mount / "system.slice"
    assert own_groups("cpu", root) == [Group(2, (slice_ / "llm.service", slice_, mount))]


def test_v1_path_up(tmp_path: Path) -> None:
    root = v1(tmp_path, "memory", "/a/b", **{"a/b/x": ""})
    mount = root / "sys/fs/cgroup/memory"
    assert own_groups("memory", root) == [Group(1, (mount / "a/b", mount / "a", mount))]
    assert own_groups("cpu", root) == []


def test_both_at_once(tmp_path: Path) -> None:
    mounts = V1_MOUNT.format(top="/", mount="/cg/cpu,cpuacct", controller="cpu,cpuacct")
    write(
        tmp_path,
        {
            "proc/self/mountinfo": mounts + V2_MOUNT.format(top="/", mount="/cg/unified"),
            "proc/self/cgroup": "3:cpuacct,cpu:/job\n0::/\n",
            "cg/cpu,cpuacct/job/x": "",
            "cg/unified/x": "",
        },
    )
    assert [group.version for group in own_groups("cpu", tmp_path)] == [1, 2]
    assert [group.version for group in own_groups("memory", tmp_path)] == [2]


@pytest.mark.parametrize(
    ("group", "top", "inside"),
    [
        (
            "/docker/abc",
            "/docker/abc",
            (),
        ),  # container without a namespace: a bind mount of its own
        ("/docker/abc/worker", "/docker/abc", ("worker",)),
        ("/", "/", ()),  # namespace: the group is the root of what can be seen
        ("/../../other", "/", ()),  # moved out of the namespace
        ("/docker/abcdef", "/docker/abc", ()),  # a neighbour, not a child
        ("/worker", "/..", ()),
        ("/gone", "/", ()),  # not visible below the mount
    ],
)
def test_what_the_mount_shows(tmp_path: Path, group: str, top: str, inside: tuple[str]) -> None:
    root = v2(tmp_path, group, top, **{"worker/x": ""})
    mount = root / "sys/fs/cgroup"
    assert own_groups("cpu", root)[0].path[0] == mount.joinpath(*inside)
    assert own_groups("cpu", root)[0].path[-1] == mount


def test_blank_in_the_mount_point(tmp_path: Path) -> None:
    mounts = V2_MOUNT.format(top="/", mount=r"/odd\040place")
    write(
        tmp_path,
        {"proc/self/mountinfo": mounts, "proc/self/cgroup": "0::/a\n", "odd place/a/x": ""},
    )
    assert own_groups("cpu", tmp_path)[0].path[0] == tmp_path / "odd place/a"


def test_nothing_there(tmp_path: Path) -> None:
    assert own_groups("cpu", tmp_path) == []
    assert read_int(tmp_path / "absent") is None
    assert read_int(tmp_path) is None


@pytest.mark.parametrize("text", ["max", "", "12x", "1 2", "-", "9" * 40, "\0"])
def test_not_a_number(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"file": text})
    assert read_int(tmp_path / "file") is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(["0::/", "0::/a/b", ":", "4:memory:/a", "x", "", "0::", "9:cpu:a"])),
    st.lists(st.sampled_from([V2_MOUNT, V1_MOUNT, "1 2 3", " - ", "a - b", "1 2 3 4 5 - cgroup"])),
    st.sampled_from(["", "0", "max", "-1", "100000 0", "0 100000", "50000 100000", "junk\n\n"]),
)
def test_odd_files_never_raise(tmp_path: Path, groups, mounts, text: str) -> None:
    show = [m.format(top="/", mount="/cg", controller="memory,cpu") for m in mounts]
    names = ("cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.stat")
    write(
        tmp_path,
        {
            "proc/self/mountinfo": "\n".join(show),
            "proc/self/cgroup": "\n".join(groups),
            **{f"cg/{name}": text for name in names},
            "proc/meminfo": text,
        },
    )
    quota = cgroup_quota(tmp_path)
    assert quota is None or quota > 0
    assert default_threads(tmp_path) >= 1
    assert limit_bytes(tmp_path)[0] >= 0
    assert available_bytes(tmp_path) >= 0
