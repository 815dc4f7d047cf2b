"""A packed matrix of any format and size, and its product on several threads."""

from __future__ import annotations

import numpy as np

from bench.limits import Crew, share
from fastllm.flash.arena import Arena
from fastllm.kernels.activations import layout_reference, token_bytes
from fastllm.kernels.layouts import LAYOUTS, ROWS, native_unit_columns, pack_reference
from fastllm.kernels.matmul_args import SCRATCH_BYTES
