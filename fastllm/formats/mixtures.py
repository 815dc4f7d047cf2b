"""Which type each tensor of a rewritten model gets, by the mixtures that llama.cpp made usual."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastllm.quants import BLOCKS

# Matrices by shape that are not multiplied as weights: routers choose experts and positions are
# added, so both are small and sensitive; llama.cpp leaves them too.
_KEPT_PARTS = ("ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d", "_norm")
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_FLOATS = ("f32", "f16", "bf16", "f64")
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight$")

# Rows that are no whole number of 256 get the type in blocks of 32 that holds at least as much.
_FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Mixture:
    """What a whole file is made of.

    Attributes
    ----------
    file_type : int
        Its ``general.file_type``.
    base : str
        Type of most matrices.
    head : str or None
        Type of the output matrix, which decides the logits directly; None: as the others.
    more : dict of str to str
        Tensors of a layer (``attn_v``) that get another type in the layers that matter most.
    qkv : str or None
        Type of a fused ``attn_qkv``, which has the values in it.
    """

    file_type: int
    base: str
    head: str | None = "q8_0"
    more: Mapping[str, str] | None = None
    qkv: str | None = None


_MORE = {"attn_v": "q6_k", "ffn_down": "q6_k"}

#: What a model can be rewritten as.
MIXTURES = {
    "f32": Mixture(0, "f32", None),
    "f16": Mixture(1, "f16", None),
    "bf16": Mixture(32, "bf16", None),
    "q8_0": Mixture(7, "q8_0"),
    "q4_0": Mixture(2, "q4_0"),
    "q4_1": Mixture(3, "q4_1"),
    "q5_0": Mixture(8, "q5_0"),
    "q5_1": Mixture(9, "q5_1"),
    "q4_k": Mixture(14, "q4_k", "q6_k"),
    "q5_k": Mixture(16, "q5_k", "q6_k"),
    "q6_k": Mixture(18, "q6_k", "q6_k"),
    "q4_k_m": Mixture(15, "q4_k", "q6_k", _MORE, "q5_k"),
    "q5_k_m": Mixture(17, "q5_k", "q6_k", _MORE, "q6_k"),
}


def matters_most(layer: int, num_layers: int) -> bool:
    """Return whether a layer is in the first or last eighth, or each third one between."""
    first = num_layers // 8
    return layer < first or layer >= 7 * num_layers // 8 or (layer - first) % 3 == 2


def type_of(
    name: str,
    shape: tuple[int, ...],
    source_type: str,
    mixture: Mixture,
    *,
    num_layers: int,
    has_head: bool,
    architecture: str = "",
) -> str:
    """Return the type that a tensor of a GGUF model gets.

    Vectors, norms, routers, positions and integers keep theirs. Rows that are no whole blocks get
    the next larger type in blocks of 32, and 16 bits where that does not fit either.
    """
    is_matrix = len(shape) >= 2 and name.endswith(".weight")
    if not is_matrix or any(part in name for part in _KEPT_PARTS):
        return source_type
    if source_type not in BLOCKS or re.fullmatch(r"i\d+", source_type):
        return source_type
    chosen = mixture.base
    if name == (_HEAD if has_head else _EMBEDDING):
        chosen = mixture.head or chosen
    elif match := _IN_LAYER.match(name):
        layer, part = int(match[1]), match[2]
        if part == "attn_qkv" and mixture.qkv is not None:
            chosen = mixture.qkv
        elif mixture.more is not None and part in mixture.more:
            chosen = _in_layer(part, layer, num_layers, mixture, architecture)
    if shape[-1] % BLOCKS[chosen].elements:
        chosen = _FALLBACK.get(chosen, chosen)
    if shape[-1] % BLOCKS[chosen].elements:
        return "f16" if source_type in ("f32", "f64") else source_type
    return chosen


def _in_layer(part: str, layer: int, num_layers: int, mixture: Mixture, architecture: str) -> str:
    assert mixture.more is not None
    most = matters_most(layer, num_layers)
    if part == "ffn_down" and architecture == "falcon" and mixture.base == "q4_k":
        # Its MLP runs beside attention and bears rounding better.
        if layer < num_layers // 16:
            return "q6_k"
        return "q5_k" if most else "q4_k"
    return mixture.more[part] if most else mixture.base


def is_quantized(type: str) -> bool:
    """Return whether a type holds rounded weights."""
    return type in BLOCKS and type not in _FLOATS and not re.fullmatch(r"i\d+", type)
