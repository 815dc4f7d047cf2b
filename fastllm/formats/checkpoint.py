"""Checkpoint: one model on disk, whatever its format. Magic bytes decide, never a suffix."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import (
    FormatError,
    ModelNotFoundError,
    ReadError,
    RequestError,
    UnsupportedError,
)
from fastllm.formats.checks import read_start, shown
from fastllm.formats.gguf import MAGIC, open_gguf
from fastllm.formats.json_files import read_object
from fastllm.formats.safetensors import open_safetensors, open_safetensors_index
from fastllm.formats.tensors import TensorInfo
from fastllm.quants import dequantize, row_bytes

#: Files of a Hugging Face folder that tokenizers and templates are made of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "vocab.json",
    "merges.txt",
)
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth")
_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
# First bytes of the formats before GGUF ("ggml", "ggmf", "ggjt", "ggla" as little-endian words).
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: what it says about itself, and where its tensors lie.

    Nothing is held open; each read opens its file.

    Attributes
    ----------
    kind : str
        "gguf", or "hf" (a Hugging Face folder with safetensors).
    path : str
        The file or folder.
    tensors : dict of str to TensorInfo
        Empty for a vocabulary without weights.
    metadata : dict
        GGUF keys, or config.json.
    generation_config : dict
        generation_config.json, or empty.
    tokenizer_files : dict of str to str
        Name to path, of those in `TOKENIZER_FILES` that exist; empty for GGUF.
    metadata_types : dict of str to str
        For GGUF: type of each key in the file, as `gguf.GGUFFile.types`.
    """

    kind: str
    path: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    metadata_types: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorInfo:
        """Return the tensor called `name`; `FormatError` if there is none."""
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path}: has no tensor {shown(name)}")
        return info

    def read(self, name: str) -> NDArray[np.uint8]:
        """Read the bytes of a tensor as they lie in the file.

        Returns
        -------
        uint8[nbytes]
            New array.

        Raises
        ------
        FormatError
            No tensor of this name.
        ReadError
            The disk refused, or the file has become shorter; the text names file and offset.
        """
        info = self.tensor(name)
        return read_bytes(info.path, info.offset, info.nbytes)

    def read_rows(self, name: str, start: int, count: int) -> NDArray[np.uint8]:
        """Read `count` rows (along the last axis) of a tensor from row `start` on.

        Returns
        -------
        uint8[count, row_bytes]
            New array.

        Raises
        ------
        FormatError, ReadError
            As `read`.
        RequestError
            The rows are not all there.
        UnsupportedError
            The type is not built, so rows have no size.
        """
        info = self.tensor(name)
        size = row_bytes(info.type, info.shape[-1] if info.shape else 1)
        num_rows = info.nbytes // size if size else 0
        if not 0 <= start <= start + count <= num_rows:
            raise RequestError(
                f"{self.path}: rows {start} to {start + count} of {shown(name)}, it has {num_rows}"
            )
        return read_bytes(info.path, info.offset + start * size, count * size).reshape(count, size)

    def read_float32(self, name: str) -> NDArray[np.float32]:
        """Read a tensor and return its values.

        Returns
        -------
        float32[shape]
            New array.

        Raises
        ------
        FormatError, ReadError
            As `read`.
        UnsupportedError
            Its type is not built.
        """
        info = self.tensor(name)
        return dequantize(info.type, self.read(name)).reshape(info.shape)


def read_bytes(path: str, offset: int, num_bytes: int) -> NDArray[np.uint8]:
    """Read a stretch of a file into a new uint8[num_bytes]; `ReadError` if it is not all there."""
    raw = np.empty(num_bytes, np.uint8)
    rest = raw.data
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while rest:
                # A read may give less than asked (2 GiB is Linux's most), 0 only at the end.
                got = file.readinto(rest)
                if not got:
                    raise ReadError(
                        f"{path}: ends at offset {offset + num_bytes - len(rest)}, bytes up to "
                        f"{offset + num_bytes} were promised: the file has changed, get it again"
                    )
                rest = rest[got:]
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        place = offset + num_bytes - len(rest)
        raise ReadError(f"{path}: cannot be read at offset {place}: {error.strerror}") from error
    return raw


def open_checkpoint(path: str | os.PathLike[str], *, weights: bool = True) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder, or a folder with one GGUF model.

    Parameters
    ----------
    path : path
        A safetensors file stands for its folder, with the tensors of that file only.
    weights : bool
        False: a folder with tokenizer files and no weights will do.

    Raises
    ------
    ModelNotFoundError
        Nothing there, or a shard is missing.
    RequestError
        A folder with several models; the text names them.
    UnsupportedError
        Weights in PyTorch's pickle format, or a file of a kind that is not built.
    FormatError
        A damaged file.
    ReadError
        The disk refused.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _open_folder(path, weights)
    start = read_start(path, 9)
    if start[:4] == MAGIC:
        return _open_gguf(path)
    if start[8:9] == b"{":
        return _open_huggingface(os.path.dirname(path) or ".", path, weights)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise _pickle_error(path)
    if start[:4] in _OLD_GGML:
        raise UnsupportedError(f"{path}: a ggml file from before GGUF; convert it to GGUF")
    raise FormatError(f"{path}: neither a GGUF nor a safetensors file (first bytes {start[:4]!r})")


def _open_gguf(path: str) -> Checkpoint:
    gguf = open_gguf(path)
    return Checkpoint("gguf", path, gguf.tensors, gguf.metadata, metadata_types=gguf.types)


def _pickle_error(path: str) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: weights in PyTorch's pickle format can run code and are not read; "
        "convert them to safetensors"
    )


def _open_folder(path: str, weights: bool) -> Checkpoint:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise ReadError(f"{path}: cannot be listed: {error.strerror}") from error
    tensor_files = [name for name in names if name.endswith(".safetensors")]
    if _INDEX in names:
        return _open_huggingface(path, os.path.join(path, _INDEX), weights)
    if "model.safetensors" in names or len(tensor_files) == 1:
        name = "model.safetensors" if "model.safetensors" in names else tensor_files[0]
        return _open_huggingface(path, os.path.join(path, name), weights)
    if tensor_files:
        raise ModelNotFoundError(
            f"{path}: {len(tensor_files)} safetensors files, but no {_INDEX} to say what is where"
        )
    # Shards after the first belong to the first.
    models = [n for n in names if n.endswith(".gguf") and not _LATER_SHARD.search(n)]
    if len(models) == 1:
        return _open_gguf(os.path.join(path, models[0]))
    if models:
        raise RequestError(
            f"{path}: {len(models)} GGUF models, say which: {', '.join(map(shown, models[:8]))}"
        )
    if not weights and any(name in names for name in TOKENIZER_FILES):
        return _open_huggingface(path, None, weights)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise _pickle_error(os.path.join(path, pickles[0]))
    raise ModelNotFoundError(f"{path}: no *.gguf, no *.safetensors, no {_INDEX} in this folder")


def _open_huggingface(folder: str, weights_path: str | None, weights: bool) -> Checkpoint:
    config_path = os.path.join(folder, "config.json")
    config: dict[str, Any] = {}
    if os.path.exists(config_path):
        config = read_object(config_path)
    elif weights:
        raise ModelNotFoundError(f"{config_path}: missing; it says what the weights beside it are")
    generation_path = os.path.join(folder, "generation_config.json")
    tensors: dict[str, TensorInfo] = {}
    if weights_path is not None:
        is_index = os.path.basename(weights_path) == _INDEX
        opened = open_safetensors_index if is_index else open_safetensors
        tensors = opened(weights_path).tensors
    files = {name: os.path.join(folder, name) for name in TOKENIZER_FILES}
    return Checkpoint(
        "hf",
        folder if weights_path is None or os.path.dirname(weights_path) == folder else weights_path,
        tensors,
        config,
        read_object(generation_path) if os.path.exists(generation_path) else {},
        {name: file for name, file in files.items() if os.path.isfile(file)},
    )
