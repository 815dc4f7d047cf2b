"""FolderAsGGUF: a Hugging Face folder behind the face of a GGUF checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.conversion.check import require_same
from fastllm.conversion.tensors import Origin, origins
from fastllm.errors import FormatError, ModelNotFoundError, RequestError, UnsupportedError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.checks import shown
from fastllm.formats.gguf_writer import type_of_value
from fastllm.formats.tensors import TensorInfo
from fastllm.models.bind import bind
from fastllm.models.families import family_of_hf
from fastllm.models.rope import tables
from fastllm.quants import quantize, row_bytes
from fastllm.tokenizer.to_gguf import gguf_keys


@dataclass(frozen=True)
class FolderAsGGUF(Checkpoint):
    """A checkpoint of kind "gguf" whose rows are read from a folder's files.

    Attributes
    ----------
    notes : tuple of str
        What readers of the file will do otherwise than with the folder.
    """

    folder: Checkpoint = field(kw_only=True)
    origins: Mapping[str, Origin] = field(kw_only=True)
    tables: Mapping[str, NDArray[np.float32]] = field(kw_only=True)
    notes: tuple[str, ...] = field(kw_only=True)

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor as they would lie in the file."""
        info = self.tensor(name)
        if not info.shape:
            raise FormatError(f"{self.path}: tensor {shown(name)} has no rows")
        rows = info.shape[0] if len(info.shape) > 1 else 1
        return self.read_rows(name, 0, rows).reshape(-1)

    def read_rows(self, name: str, start: int, count: int) -> NDArray[np.uint8]:
        """Return `count` rows of a tensor from row `start` on, as they would lie in the file.

        Returns
        -------
        uint8[count, row_bytes]

        Raises
        ------
        RequestError
            The rows are not all there.
        FormatError, ReadError
        """
        info = self.tensor(name)
        num_rows = info.shape[0] if len(info.shape) > 1 else 1
        if not 0 <= start <= start + count <= num_rows:
            raise RequestError(
                f"{self.path}: rows {start} to {start + count} of {shown(name)}, it has {num_rows}"
            )
        if name in self.tables:
            return quantize("f32", self.tables[name].reshape(1, -1))[start : start + count]
        origin = self.origins[name]
        if len(info.shape) > 1:
            return self._stored_rows(origin, start, count)
        values = self.folder.read_float32(origin.name).reshape(-1)
        values = values if origin.rows is None else values[origin.rows]
        return quantize("f32", values.reshape(1, -1) + np.float32(origin.offset))

    def _stored_rows(self, origin: Origin, start: int, count: int) -> NDArray[np.uint8]:
        """Read rows of a matrix, each run of neighbours at once."""
        if origin.rows is None or not count:
            return self.folder.read_rows(origin.name, start, count)
        rows = origin.rows[start : start + count]
        order = np.argsort(rows)
        runs = np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)
        out: NDArray[np.uint8] | None = None
        for run in runs:
            found = self.folder.read_rows(origin.name, int(rows[run[0]]), len(run))
            if out is None:
                out = np.empty((count, found.shape[1]), np.uint8)
            out[run] = found
        assert out is not None
        return out


def as_gguf(checkpoint: Checkpoint) -> FolderAsGGUF:
    """Return a Hugging Face folder as the GGUF file that it would be.

    Nothing is read but headers, vectors and the tokenizer's files.

    Parameters
    ----------
    checkpoint : Checkpoint
        An open folder with weights. One without a tokenizer becomes a file without one.

    Raises
    ------
    UnsupportedError
        A family, variant or tokenizer that is not built, or that GGUF cannot say; named.
    FormatError, ReadError
        A file is damaged, or the disk refused.
    """
    bound = bind(checkpoint)
    family = family_of_hf(checkpoint.metadata)
    config = bound.decoder.config
    sources = origins(bound, family, family.decoder(config, "gguf"))
    extra = tables(bound.decoder.ropes[0]) if len(bound.decoder.ropes) == 1 else {}
    some_file = next(iter(checkpoint.tensors.values())).path
    infos = {name: _info(checkpoint, name, origin) for name, origin in sources.items()}
    infos |= {
        name: TensorInfo(name, "f32", table.shape, some_file, 0, table.nbytes)
        for name, table in extra.items()
    }
    metadata, notes = _metadata(checkpoint, family.config_to_gguf(config))
    view = FolderAsGGUF(
        "gguf",
        checkpoint.path,
        infos,
        metadata,
        metadata_types={key: type_of_value(value) for key, value in metadata.items()},
        folder=checkpoint,
        origins=sources,
        tables=extra,
        notes=notes,
    )
    try:
        require_same(bound.decoder, bind(view).decoder)
    except UnsupportedError as error:
        raise UnsupportedError(f"{checkpoint.path}: cannot become a GGUF file: {error}") from error
    return view


def _info(checkpoint: Checkpoint, name: str, origin: Origin) -> TensorInfo:
    """Return what the file says of a tensor; vectors are float32 there, whatever they were."""
    source = checkpoint.tensor(origin.name)
    type = source.type if len(origin.shape) > 1 else "f32"
    rows = origin.shape[0] if len(origin.shape) > 1 else 1
    return replace(
        source,
        name=name,
        type=type,
        shape=origin.shape,
        nbytes=rows * row_bytes(type, origin.shape[-1]),
    )


def _metadata(
    checkpoint: Checkpoint, model: Mapping[str, object]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return all keys of the file, and what is to be said of them."""
    keys = dict(model)
    keys["general.name"] = _name(checkpoint)
    vocab_size = keys[f"{keys['general.architecture']}.vocab_size"]
    assert isinstance(vocab_size, int)
    notes: tuple[str, ...] = ()
    try:
        found = gguf_keys(
            checkpoint.tokenizer_files,
            vocab_size,
            checkpoint.metadata,
            checkpoint.generation_config,
        )
        keys |= found.keys
        notes = found.notes
    except ModelNotFoundError:
        keys["tokenizer.ggml.model"] = "none"
        notes = ("the folder has no tokenizer, so the file has none; it works with token ids only",)
    # As a reader gets them: floats in single precision.
    return {
        key: float(np.float32(value)) if isinstance(value, float) else value
        for key, value in keys.items()
    }, notes


def _name(checkpoint: Checkpoint) -> str:
    """Return the model's name: what its config was saved under, else the folder's own."""
    told = checkpoint.metadata.get("_name_or_path")
    path = told if isinstance(told, str) and told.strip("./\\") else checkpoint.path
    return os.path.basename(os.path.abspath(path)) or "model"
