"""The disk probe reads, and survives what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastllm.machine.disks import BLOCK_BYTES, read_rate


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
def test_rate_is_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK_BYTES + 5))
    rate = read_rate(path, seconds=0.05, num_threads=2)
    assert rate.bytes_per_s > 1e6


def test_without_direct_reads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * BLOCK_BYTES))
    rate = read_rate(path, seconds=0.02)
    assert not rate.direct
    assert rate.bytes_per_s > 0 or not hasattr(os, "preadv")


def test_nothing_to_read(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"x")
    for path in (small, tmp_path / "absent", tmp_path):
        assert read_rate(path, seconds=0.02).bytes_per_s == 0
