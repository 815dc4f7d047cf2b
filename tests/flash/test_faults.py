"""Both readers on a disk that interrupts, falls short, fails and hangs (see faultio.c)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastllm.flash import backend

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs cc on Linux"
)

# Reads pieces of argv[1] and compares them; prints the first error of ours.
SCRIPT = """
import random, signal, sys
from fastllm.errors import ReadError
from fastllm.flash.reader import FileReader
path, seconds = sys.argv[1], float(sys.argv[2])
content = random.Random(0).randbytes(3 << 20)
ranges = [(0, 3 << 20), (1, 5000), (4096, 1 << 20), (2_000_001, 900_001), (3_000_000, 99_999)] * 4
class Interrupt(Exception): pass
def interrupt(*_): raise Interrupt
signal.signal(signal.SIGALRM, interrupt)
try:
    with FileReader(path) as reader:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for index, chunk in reader.stream(ranges):
            offset, nbytes = ranges[index]
            if chunk.tobytes() != content[offset : offset + nbytes]:
                sys.exit(f"range {index} differs")
        if reader.read(777, 100_000).tobytes() != content[777:100_777]:
            sys.exit("read differs")
    print("equal")
except ReadError as error:
    print("ReadError", error)
except Interrupt:
    print("interrupted")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faultio") / "faultio.so"
    source = Path(__file__).with_name("faultio.c")
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", out, source, "-ldl"], check=True)
    return out


@pytest.fixture(params=["native", "pure"])
def outcome(request, library, tmp_path, python):
    """Run the script with faults; `cold` empties the page cache first, so that O_DIRECT is used."""
    if request.param == "native" and backend.NAME != "native":
        pytest.skip("the extension was not built")

    def run(cold: bool, seconds: float = 0, **faults: int) -> str:
        path = tmp_path / "disturbed.bin"
        path.write_bytes(random.Random(0).randbytes(3 << 20))
        if cold:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        env = {f"FAULT_{name}": str(value) for name, value in faults.items()}
        env |= {"FAULT_FILE": path.name, "LD_PRELOAD": str(library)}
        env |= {"FASTLLM_PURE": "1" if request.param == "pure" else "0"}
        done = python("-c", SCRIPT, str(path), str(seconds), env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("cold", [True, False])
def test_interrupted_and_short_reads_still_arrive(outcome, cold: bool) -> None:
    assert outcome(cold, EINTR=3, SHORT=2) == "equal"


@pytest.mark.parametrize("cold", [True, False])
def test_bad_sector(outcome, cold: bool) -> None:
    text = outcome(cold, AT=2_950_000)
    assert text.startswith("ReadError")
    assert "disturbed.bin: cannot read 3145728 bytes at offset 0: Input/output error" in text


def test_signal_interrupts_a_hanging_read(outcome) -> None:
    assert outcome(True, seconds=0.1, DELAY_MS=300) == "interrupted"
