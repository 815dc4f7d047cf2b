"""The panel layouts of all weight formats, by ggml's name of the type."""

from __future__ import annotations

from fastllm.kernels.codes import FORMATS
from fastllm.kernels.panels import PanelLayout

LAYOUTS: dict[str, PanelLayout] = {name: codes.layout for name, codes in FORMATS.items()}


def native_unit_columns(name: str) -> int:
    """Columns of one native block (the file's), which may be half a unit."""
    return {"q32": 32, "q256": 256, "f32": 1}[LAYOUTS[name].activations]
