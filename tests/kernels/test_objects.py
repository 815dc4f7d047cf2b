"""The object cache: damage, no place to write, two builders at once, changed sources."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm.errors import KernelError
from fastllm.kernels import building, objects
from fastllm.kernels.interpreter_codes import PACK_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.moves import move_table
from fastllm.kernels.road import ROADS, choose_road, describe, host_features, road_named
from tests.kernels.samples import POSSIBLE_ROADS, aligned
from tests.naive.panels import pack_reference

UNIT = "pack"  # the quickest to build
BEST = POSSIBLE_ROADS[0]


@pytest.fixture(scope="module")
def built():
    """Bytes of a sound object file."""
    objects.addresses([UNIT], BEST)
    return objects.object_path(UNIT, BEST).read_bytes()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a process that has loaded nothing; returns where the object will be."""
    monkeypatch.setenv("FASTLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(objects, "_LOADER", objects._Loader())
    return objects.object_path(UNIT, BEST)


@pytest.fixture
def no_build(monkeypatch):
    """Building anything fails the test."""

    def refuse(unit, road):
        raise AssertionError(f"{unit} was built")

    monkeypatch.setattr(building, "build_one", refuse)


def check_packer(address):
    """The object does what it is for."""
    native = np.random.default_rng(0).integers(0, 256, (16, 20), np.uint8)
    out = aligned(LAYOUTS["q4_1"].panel_bytes(32))
    moves = move_table("q4_1")
    pack = objects.callable_at(address, PACK_ARGS)
    job = np.array([moves.ctypes.data, 20, 16, 20, 1, out.ctypes.data, 0, 1])
    pack(job.ctypes.data, native.ctypes.data)
    np.testing.assert_array_equal(out, pack_reference("q4_1", native)[0])


def test_a_missing_object_is_built_and_kept(cache, built):
    told = []
    address = objects.addresses([UNIT], BEST, lambda *args: told.append(args))[UNIT]
    check_packer(address)
    assert objects._read(cache) is not None
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # nothing left over
    assert told[0][1] == 0
    assert told[-1][1] == 1


def test_a_kept_object_is_loaded_once(cache, built, no_build):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(built)
    told = []
    address = objects.addresses([UNIT], BEST, lambda *args: told.append(args))[UNIT]
    check_packer(address)
    cache.unlink()
    assert objects.addresses([UNIT, UNIT], BEST) == {UNIT: address}
    assert told == []  # nothing to tell where nothing is built


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob[:2000] + bytes([blob[2000] ^ 1]) + blob[2001:],
    ],
    ids=["truncated", "a bit flipped"],
)
def test_a_damaged_object_is_built_anew(cache, built, damage):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage(built))
    check_packer(objects.addresses([UNIT], BEST)[UNIT])
    assert objects._read(cache) is not None


@given(data=st.data())
def test_no_damage_goes_unseen(built, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.o"
    at = data.draw(st.integers(0, len(built) - 1))
    if data.draw(st.booleans()):
        blob = bytearray(built)
        blob[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(blob)
    else:
        path.write_bytes(built[:at])
    assert objects._read(path) is None


@pytest.mark.parametrize("home", ["a file", "/proc/nowhere", "read-only"])
def test_where_nothing_can_be_written_the_object_lives_in_memory(
    cache, built, monkeypatch, tmp_path, home
):
    if home == "a file":
        home = tmp_path / "file"
        home.write_text("")
    elif home == "read-only":
        home = tmp_path / "read-only"
        home.mkdir()
        home.chmod(0o500)
        if os.access(home, os.W_OK):
            pytest.skip("this user may write anywhere")
    monkeypatch.setenv("FASTLLM_HOME", str(home))
    check_packer(objects.addresses([UNIT], BEST)[UNIT])


def test_a_full_disk_leaves_no_half_file(cache, built, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building.os, "fsync", full)
    building.write(cache, objects.pack_objects([("unit", "symbol", b"code")]))
    assert list(cache.parent.iterdir()) == []


def test_two_first_starts_at_once(tmp_path):
    """Both build, both get a sound object, one sound file remains."""
    code = (
        "from tests.kernels.test_objects import *\n"
        f"check_packer(objects.addresses([{UNIT!r}], BEST)[{UNIT!r}])\n"
        "print(objects.object_path(UNIT, BEST))\n"
    )
    env = {**os.environ, "FASTLLM_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    done = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], done
    path = Path(done[0][0].strip())
    assert objects._read(path) is not None
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def source_key(root):
    """The key that the package under `root` has."""
    code = "from fastllm.kernels.objects import source_key; print(source_key())"
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_key_covers_every_kernel_source(tmp_path):
    package = Path(fastllm.__file__).parent
    shutil.copytree(
        package, tmp_path / "fastllm", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyx")
    )
    kernels = tmp_path / "fastllm" / "kernels"
    assert source_key(tmp_path) == objects.source_key()
    keys = {objects.source_key()}
    # an intrinsic and a table: files that no unit's own file names
    for name in ("emit.py", "interpreter_codes.py", "new.py", "ops/norm.py", "ops/new.py"):
        with open(kernels / name, "a") as file:
            file.write("# changed\n")
        keys.add(source_key(tmp_path))
    assert len(keys) == 6
    # what keeps and loads objects does not decide what they are
    with open(kernels / "objects.py", "a") as file:
        file.write("# changed\n")
    assert source_key(tmp_path) in keys


@pytest.mark.parametrize("part", ["numba", "llvmlite"])
def test_the_key_covers_versions(monkeypatch, part):
    plain = objects.source_key.__wrapped__()
    assert plain == objects.source_key()
    real = objects.version
    monkeypatch.setattr(objects, "version", lambda name: real(name) + (name == part) * ".1")
    assert objects.source_key.__wrapped__() != plain
    monkeypatch.undo()
    monkeypatch.setattr(objects.platform, "python_version", lambda: "3.99.0")
    assert objects.source_key.__wrapped__() != plain


def test_each_road_has_its_own_file():
    paths = {objects.object_path(UNIT, road) for road in ROADS}
    assert len(paths) == len(ROADS)


def test_a_unit_that_cannot_be_built(cache):
    with pytest.raises(KernelError, match=r"mm_q9_9 \(\w+\) could not be built") as caught:
        objects.addresses(["mm_q9_9"], BEST)
    assert "\n" not in str(caught.value)
    assert not cache.parent.exists() or list(cache.parent.iterdir()) == []


def test_verbose_shows_all_that_a_failed_build_wrote(cache):
    with pytest.raises(KernelError) as caught:
        objects.addresses(["mm_q9_9"], BEST)
    written = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in written
    assert len(written.splitlines()) > 3


def test_a_build_that_was_killed_says_so(cache, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(building.subprocess, "run", lambda *args, **options: killed)
    with pytest.raises(KernelError, match="it was killed; a build takes up to 250 MB"):
        objects.addresses([UNIT], BEST)


@pytest.mark.parametrize(
    ("units", "cores", "megabytes", "processes"),
    [(9, 64, 100_000, 9), (9, 2, 100_000, 2), (9, 8, 800, 3), (9, 8, 10, 1), (1, 8, 9000, 1)],
)
def test_builds_at_once(monkeypatch, units, cores, megabytes, processes):
    monkeypatch.setattr(building, "default_threads", lambda: cores)
    monkeypatch.setattr(building, "available_bytes", lambda: megabytes * 1_000_000)
    assert building.build_processes(units) == processes


def test_a_call_frees_the_gil(built):
    """ctypes.CFUNCTYPE does, ctypes.PYFUNCTYPE would not."""
    call = objects.callable_at(objects.addresses([UNIT], BEST)[UNIT], PACK_ARGS)
    prototype = next(
        cell.cell_contents
        for cell in call.__closure__
        if isinstance(cell.cell_contents, ctypes._CFuncPtr)
    )
    assert not type(prototype)._flags_ & 0x4  # FUNCFLAG_PYTHONAPI


def test_cache_root(monkeypatch):
    monkeypatch.setenv("FASTLLM_HOME", "/somewhere")
    assert objects.cache_root() == Path("/somewhere/kernels")


def test_settings_of_numba_do_not_reach_a_build(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_OPT", "0")
    monkeypatch.setenv("KEPT", "1")
    (tmp_path / ".numba_config.yaml").write_text("opt: 0\n")
    monkeypatch.chdir(tmp_path)
    seen = []

    def run(command, *, cwd, env, **_options):
        seen.append((Path(cwd), env))
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(building.subprocess, "run", run)
    road = choose_road()
    with pytest.raises(KernelError, match="could not be built: no"):
        building.build_one("step", road)
    ((folder, env),) = seen
    assert folder != tmp_path
    assert env["KEPT"] == "1"
    ours = {name for name in env if name.startswith("NUMBA_")}
    assert ours == {"NUMBA_CACHE_DIR", *(n for n in road.environment() if n.startswith("NUMBA_"))}
    assert all(map(os.path.isabs, env["PYTHONPATH"].split(os.pathsep)))


# --------------------------------------------------------------------------- roads
def test_the_best_road_is_taken(monkeypatch):
    monkeypatch.delenv("FASTLLM_ROAD", raising=False)
    assert choose_road() == BEST
    for road in ROADS:
        monkeypatch.setattr("fastllm.kernels.road.host_features", lambda road=road: road.needs)
        assert choose_road() == road
    monkeypatch.setattr("fastllm.kernels.road.host_features", frozenset)
    assert choose_road().name == "generic"


@pytest.mark.parametrize("road", POSSIBLE_ROADS, ids=lambda road: road.name)
def test_a_road_may_be_demanded(monkeypatch, road):
    monkeypatch.setenv("FASTLLM_ROAD", road.name)
    assert choose_road() == road
    assert describe()["road"] == road.name


def test_an_unknown_road_is_refused(monkeypatch):
    monkeypatch.setenv("FASTLLM_ROAD", "gpu")
    with pytest.raises(KernelError, match=r"FASTLLM_ROAD='gpu'.*choose one of .*generic"):
        choose_road()


@pytest.mark.skipif(len(ROADS) == 1, reason="every CPU of this kind can run the only road")
def test_a_road_that_this_cpu_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv("FASTLLM_ROAD", ROADS[0].name)
    monkeypatch.setattr("fastllm.kernels.road.host_features", frozenset)
    with pytest.raises(KernelError, match=r"this CPU lacks .*avx2"):
        choose_road()


def test_roads_go_from_most_to_least():
    assert road_named("generic") == ROADS[-1]
    assert ROADS[-1].needs == frozenset()
    for better, worse in pairwise(ROADS):
        assert worse.needs < better.needs
    assert {road.name for road in POSSIBLE_ROADS} == set(describe()["possible"])
    assert host_features()


def test_features_are_those_that_llvm_finds():
    import llvmlite.binding as llvm

    theirs = {name for name, on in llvm.get_host_cpu_features().items() if on}
    tiles = {"amx-tile", "amx-int8"}  # Linux may not grant them
    for road in ROADS:
        assert host_features() & road.needs - tiles == theirs & road.needs - tiles


@pytest.mark.parametrize("by_llvm", [False, True])
def test_a_kept_object_is_placed_either_way(cache, built, no_build, monkeypatch, by_llvm):
    monkeypatch.setattr(objects.elf, "SUPPORTED", objects.elf.SUPPORTED and not by_llvm)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(built)
    check_packer(objects.addresses([UNIT], BEST)[UNIT])


def test_a_second_process_imports_no_numba(python, tmp_path):
    """Kernels ready: load a model, compute, and neither numba nor llvmlite was imported."""
    from tests.golden.cases import case, materialize

    folder = materialize(case("llama"), tmp_path / "model")
    code = (
        "import json, sys\n"
        "import numpy as np\n"
        "from fastllm.formats.checkpoint import open_checkpoint\n"
        "from fastllm.step.batch import Batch\n"
        "from fastllm.options import LoadOptions\n"
        "from fastllm.step.runner import Runner\n"
        f"runner = Runner(open_checkpoint({str(folder)!r}), LoadOptions(n_threads=2))\n"
        "i = lambda *values: np.array(values, np.int32)\n"
        "batch = Batch(i(1, 2), i(0, 1), i(0, 2), i(0)[None], i(1))\n"
        "assert np.isfinite(runner.forward(batch)).all()\n"
        "runner.close()\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    # The first start may have to compile: what this process has loaded may lie in no cache, or in
    # that of a test with a home of its own.
    assert python(code).returncode == 0
    done = python(code)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    assert "numba" not in modules
    assert ("llvmlite" in modules) == (not objects.elf.SUPPORTED)
    # importlib.metadata imports a mail reader; a build's tools are for builds
    assert not {"importlib.metadata", "email.message", "fastllm.kernels.building"} & set(modules)
