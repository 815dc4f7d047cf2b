"""The CPU's name and what it can do, from /proc/cpuinfo alone.

Names are the kernel's: "avx2", "avx512_vnni", "asimddp". What a kernel build may use is decided in
`fastllm.kernels`; this is for `doctor` and for choosing a road before anything heavy is imported.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from fastllm.machine.cgroups import ROOT, read_text

# aarch64 writes numbers instead of a name: (implementer, part), Arm's and vendors' MIDR values.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD8E): "Neoverse-N3",
    (0xC0, 0xAC3): "Ampere-1",
}


@dataclass(frozen=True)
class CpuInfo:
    """What /proc/cpuinfo says.

    Attributes
    ----------
    name : str
        Model name, never empty.
    architecture : str
        "x86_64", "aarch64", or what the platform calls itself.
    features : frozenset of str
        Flags that every CPU of the machine has; empty where the system does not tell.
    vendor : str
        "GenuineIntel", "AuthenticAMD", ...; empty where the system does not tell (Arm).
    """

    name: str
    architecture: str
    features: frozenset[str]
    vendor: str = ""


def cpu_info(root: Path = ROOT) -> CpuInfo:
    """Return name and flags of this machine's CPUs.

    Parameters
    ----------
    root : Path
        Stands for ``/``.

    Returns
    -------
    CpuInfo
        On hybrid processors the flags that all cores share, and the name of the first.
    """
    text = read_text(root / "proc/cpuinfo")
    flags = [set(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)]
    architecture = _architecture()
    if root != ROOT and text:  # a tree of another machine tells by its keys
        architecture = "aarch64" if "CPU implementer" in text else "x86_64"
    name = _field(text, "model name") or _arm_name(text, root) or platform.processor()
    shared = frozenset(set.intersection(*flags) if flags else ())
    return CpuInfo(name or architecture, architecture, shared, _field(text, "vendor_id"))


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine) or "unknown"


def _arm_name(text: str, root: Path) -> str:
    """Return the core's name, or the board's, or the bare numbers."""
    implementer, part = _field(text, "CPU implementer"), _field(text, "CPU part")
    try:
        core = (int(implementer, 16), int(part, 16))
    except ValueError:
        return ""
    board = read_text(root / "proc/device-tree/model").strip("\0 \n")
    known = _ARM_CORES.get(core, f"ARM {implementer}/{part}")
    return f"{known} ({board})" if board else known


def _field(text: str, key: str) -> str:
    found = re.search(rf"^{key}\s*:[ \t]*(.*?)[ \t]*$", text, re.M)
    return found[1] if found else ""
