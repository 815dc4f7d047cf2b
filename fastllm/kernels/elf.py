"""Relocatable ELF objects of x86-64, put into executable memory without LLVM.

What a build writes is plain: code, constants, and 64-bit addresses to be filled in (LLVM's large
code model); nothing that is written later, and no symbol of others but the C library's. llvmlite
costs 45 MB and 50 ms to put that into memory; it still does where an object is something else.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = np.dtype(
    [("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"),
     ("size", "<u8"), ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry", "<u8")]
)  # fmt: skip
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip
_RELOCATION = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _SYMTAB, _RELA, _UNWIND = 1, 2, 4, 0x70000001
_WRITE, _ALLOC = 1, 2
_UNDEFINED, _FIRST_RESERVED = 0, 0xFF00
_R_X86_64_64 = 1


class NotPlain(Exception):
    """An object that this file does not know how to place."""


class Image:
    """Objects in executable memory, for as long as this lives.

    Parameters
    ----------
    objects : sequence of (str, bytes)
        A symbol of each object, and the object.

    Attributes
    ----------
    addresses : list of int
        Where the symbol of each object lies.

    Raises
    ------
    NotPlain
        Another kind of file, or something in it that is not built here.
    OSError
        The system gives no memory, or none that may be executed.
    """

    def __init__(self, objects: Sequence[tuple[str, bytes]]) -> None:
        files, size = [], 0
        for _, code in objects:
            files.append(_Object(code, size))
            size = files[-1].end
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(size, 1), flags, mmap.PROT_READ | mmap.PROT_WRITE)
        image = np.frombuffer(self._memory, np.uint8)
        base = image.ctypes.data
        for file in files:
            file.write(image, base)
        libc = ctypes.CDLL(None, use_errno=True)
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(image)), protection):
            raise OSError(ctypes.get_errno(), "no memory may be executed")
        self.addresses = [
            base + file.place_of(symbol) for file, (symbol, _) in zip(files, objects, strict=True)
        ]


class _Object:
    """One object; its parts begin at `start` of the image and end at `end`."""

    def __init__(self, code: bytes, start: int) -> None:
        if len(code) < _HEADER.size:
            raise NotPlain("not ELF")
        head = _HEADER.unpack_from(code)
        if head[0][:6] != b"\x7fELF\2\1" or head[1:3] != (_RELOCATABLE, _X86_64):
            raise NotPlain("not a relocatable ELF object of x86-64")
        self._code = code
        self._sections = np.frombuffer(code, _SECTION, head[12], head[6])
        self._places: dict[int, int] = {}  # section to its place in the image
        self.end = start
        tables = []
        for number, section in enumerate(self._sections):
            kind = int(section["type"])
            if kind == _SYMTAB:
                tables.append(section)
            if not section["flags"] & _ALLOC or not section["size"] or kind == _UNWIND:
                continue  # nothing unwinds a kernel: it raises nothing
            if kind != _PROGBITS or section["flags"] & _WRITE:
                raise NotPlain("a section that is neither code nor constants")
            align = max(int(section["align"]), 64)
            self._places[number] = place = -(-self.end // align) * align
            self.end = place + int(section["size"])
        if len(tables) != 1:
            raise NotPlain("no table of symbols")
        self._symbols = np.frombuffer(self._bytes(tables[0]), _SYMBOL)
        self._names = self._bytes(self._sections[tables[0]["link"]])

    def _bytes(self, section: np.void) -> bytes:
        offset, size = int(section["offset"]), int(section["size"])
        return self._code[offset : offset + size]

    def write(self, image: NDArray[np.uint8], base: int) -> None:
        """Copy what is run and fill in its addresses; the image will be at `base`."""
        for number, place in self._places.items():
            code = np.frombuffer(self._bytes(self._sections[number]), np.uint8)
            image[place : place + len(code)] = code
        for section in self._sections:
            target = int(section["info"])
            if section["type"] != _RELA or target not in self._places:
                continue
            entries = np.frombuffer(self._bytes(section), _RELOCATION)
            if (entries["info"] & 0xFFFFFFFF != _R_X86_64_64).any():
                raise NotPlain("relocations of another code model")
            numbers, inverse = np.unique(entries["info"] >> 32, return_inverse=True)
            targets = np.array([self._address(int(n), base) for n in numbers], np.int64)
            values = targets[inverse] + entries["addend"]
            at = self._places[target] + entries["offset"].astype(np.int64)[:, None] + np.arange(8)
            image[at] = values.view(np.uint8).reshape(-1, 8)

    def place_of(self, name: str) -> int:
        """Return where in the image a symbol lies; `NotPlain` if it does not."""
        for number, symbol in enumerate(self._symbols):
            if symbol["section"] != _UNDEFINED and self._name(number) == name:
                return self._places[int(symbol["section"])] + int(symbol["value"])
        raise NotPlain(f"no symbol {name}")

    def _name(self, number: int) -> str:
        start = int(self._symbols[number]["name"])
        return self._names[start : self._names.index(b"\0", start)].decode()

    def _address(self, number: int, base: int) -> int:
        symbol = self._symbols[number]
        section = int(symbol["section"])
        if section == _UNDEFINED:
            name = self._name(number)
            try:
                function = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p)
            except AttributeError:
                raise NotPlain(f"the C library has no {name}") from None
            return function.value or 0
        if section >= _FIRST_RESERVED or section not in self._places:
            raise NotPlain("a symbol that lies nowhere")
        return base + self._places[section] + int(symbol["value"])
