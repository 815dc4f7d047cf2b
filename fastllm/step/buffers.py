"""Activations of a step: allocated once for the largest batch, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.activations import token_bytes
from fastllm.memory.arena import Arena

_ROW_ALIGN = 64  # floats: rows begin on a cache line and have room for padded products


@dataclass(frozen=True)
class Rows:
    """float32[num_tokens][stride / 4]."""

    address: int
    stride: int


@dataclass(frozen=True)
class Tiles:
    """Activations of one kind, as matrix kernels read them."""

    address: int
    kind: str
    token_bytes: int


class Buffers:
    """Names to places in one arena; asking for a name again returns the same place.

    The sizes are gathered first (`rows`, `tiles` while ``address`` is 0), then `allocate` gives out
    the memory and the program is written a second time with true addresses.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._sizes: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._arena: Arena | None = None

    def rows(self, name: str, columns: int) -> Rows:
        """A buffer of float rows, wide enough for products padded to 16 columns."""
        stride = -(-columns // _ROW_ALIGN) * _ROW_ALIGN * 4
        return Rows(self.raw(name, stride * self.max_tokens), stride)

    def tiles(self, name: str, kind: str, columns: int) -> Tiles:
        """A buffer of quantized (or tiled float) activations."""
        size = token_bytes(kind, columns)
        return Tiles(self.raw(f"{name}.{kind}", size * self.max_tokens), kind, size)

    def raw(self, name: str, nbytes: int) -> int:
        """Address of `nbytes` under `name`; 0 before `allocate`."""
        self._sizes[name] = max(nbytes, self._sizes.get(name, 0))
        return self._places.get(name, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all that was asked for so far."""
        return sum(-(-size // 64) * 64 for size in self._sizes.values())

    def allocate(self) -> int:
        """Give every name its memory; the number of bytes."""
        total = self.nbytes
        self._arena = Arena(total)
        self._places = {name: self._arena.alloc(size, 64) for name, size in self._sizes.items()}
        return total

    def view_bytes(self, name: str) -> NDArray[np.uint8]:
        """uint8 view of a buffer."""
        assert self._arena is not None
        return self._arena.view(self._places[name], self._sizes[name])

    def close(self) -> None:
        """Free the memory."""
        if self._arena is not None:
            self._arena.close()
