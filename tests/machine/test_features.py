"""The CPU's name and flags, from files of machines of both kinds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastllm.machine.features import cpu_info
from tests.machine.trees import write

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD Ryzen 7 7840U  w/ Radeon
flags\t\t: fpu sse2 avx2 fma avx512_vnni

processor\t: 1
model name\t: other
flags\t\t: fpu sse2 avx2 fma
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd asimddp i8mm
CPU implementer\t: {implementer}
CPU variant\t: 0x3
CPU part\t: {part}

processor\t: 1
Features\t: fp asimd asimddp i8mm
CPU implementer\t: {implementer}
CPU part\t: {part}
"""


def test_x86(tmp_path: Path) -> None:
    info = cpu_info(write(tmp_path, {"proc/cpuinfo": X86}))
    assert info.name == "AMD Ryzen 7 7840U  w/ Radeon"
    assert info.architecture == "x86_64"
    assert info.features == {"fpu", "sse2", "avx2", "fma"}, "what all cores have"


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd40", "Neoverse-V1"),
        ("0x41", "0xd0b", "Cortex-A76"),
        ("0x61", "0x022", "ARM 0x61/0x022"),
    ],
)
def test_arm(tmp_path: Path, implementer: str, part: str, name: str) -> None:
    text = ARM.format(implementer=implementer, part=part)
    info = cpu_info(write(tmp_path, {"proc/cpuinfo": text}))
    assert (info.name, info.architecture) == (name, "aarch64")
    assert info.features == {"fp", "asimd", "asimddp", "i8mm"}


def test_board_name(tmp_path: Path) -> None:
    text = ARM.format(implementer="0x41", part="0xd0b")
    files = {"proc/cpuinfo": text, "proc/device-tree/model": "Raspberry Pi 5 Model B\0"}
    assert cpu_info(write(tmp_path, files)).name == "Cortex-A76 (Raspberry Pi 5 Model B)"


@pytest.mark.parametrize("text", ["", "model name\t:\nflags\t:\n", "CPU implementer\t: zz\n"])
def test_nothing_known(tmp_path: Path, text: str) -> None:
    info = cpu_info(write(tmp_path, {"proc/cpuinfo": text}))
    assert info.name
    assert info.features == frozenset()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_here() -> None:
    info = cpu_info()
    assert info.name
    assert {"sse2", "asimd"} & info.features
