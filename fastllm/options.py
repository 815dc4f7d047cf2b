"""LoadOptions: how a model is loaded, checked at the door and passed whole to whoever needs it."""

from __future__ import annotations

from dataclasses import dataclass

from fastllm.arguments import MAX_INT, shown, whole_number
from fastllm.errors import RequestError

# what float weights can be converted to while they are read
QUANTS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "bf16", "f16", "f32")
KV_TYPES = ("i16", "f16", "f32")  # types of the KV cache's values
MAX_THREADS, MAX_BATCH = 1024, 1 << 20


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes
    ----------
    n_threads : int or None
        Threads that compute, 1 to 1024. None: the physical cores that this process may use.
    n_ctx : int or None
        Tokens that prompt and answer may have together. None: the model's own, 8192 at most, and
        fewer where memory is short.
    n_batch : int
        Tokens of a step at most.
    quant : str or None
        One of `QUANTS`: float weights are quantized while they are read.
    kv_type : str or None
        One of `KV_TYPES`. None: "f32" for a model whose matrices are all float32 (it was loaded
        to be compared), else "i16", codes of 16 bits with a unit a vector.

    Raises
    ------
    RequestError
        A value that cannot be; the text names it and what is allowed.
    """

    n_threads: int | None = None
    n_ctx: int | None = None
    n_batch: int = 512
    quant: str | None = None
    kv_type: str | None = None

    def __post_init__(self) -> None:
        for name, largest, optional in (
            ("n_threads", MAX_THREADS, True),
            ("n_ctx", MAX_INT, True),
            ("n_batch", MAX_BATCH, False),
        ):
            value = getattr(self, name)
            if value is not None or not optional:
                object.__setattr__(self, name, whole_number(name, value, 1, largest))
        for name, allowed in (("quant", QUANTS), ("kv_type", KV_TYPES)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value in allowed):
                words = ", ".join(allowed)
                raise RequestError(f"{name}={shown(value)}: must be one of {words}, or None")
