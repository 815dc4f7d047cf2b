"""Bind: a checkpoint to a decoder whose every weight has its place in a file.

Nothing is read here but headers and small vectors. Shapes are checked against the config, a
missing weight is named, and tensors that the model would silently ignore are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastllm.config import ModelConfig, RopeConfig
from fastllm.errors import FormatError, UnsupportedError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.tensors import TensorInfo
from fastllm.models import names, roles
from fastllm.models.config_keys import hf_tokens
from fastllm.models.families import Family, family_of_gguf, family_of_hf
from fastllm.models.keys import Keys, shown
from fastllm.models.layers import Decoder
from fastllm.quants import BLOCKS

# Integers have a place in files, but no weight is one.
WEIGHT_TYPES = tuple(name for name in BLOCKS if not name.startswith("i") or name.startswith("iq"))


NUM_COMPARED_ROWS = 32  # of a stored head and the embedding, which are one matrix or nothing alike


@dataclass(frozen=True)
class RowSegment:
    """Consecutive rows of a stored tensor (for a vector: consecutive elements)."""

    tensor: TensorInfo
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class MatrixSource:
    """Where a matrix lies: rows of stored tensors, put together in order.

    Attributes
    ----------
    type : str
        ggml type name of all segments.
    shape : tuple of int
        (rows, cols).
    segments : tuple of RowSegment
        Most matrices have one; a matrix cut out of a fused tensor may have more.
    """

    type: str
    shape: tuple[int, int]
    segments: tuple[RowSegment, ...]


class BoundModel:
    """A decoder with every weight found.

    Attributes
    ----------
    decoder : Decoder
        What is computed; rope tables from the file are filled in.
    kind : str
        "gguf" or "hf".
    """

    def __init__(
        self,
        decoder: Decoder,
        checkpoint: Checkpoint,
        matrices: Mapping[str, MatrixSource],
        vectors: Mapping[str, tuple[RowSegment, ...]],
    ) -> None:
        self.decoder = decoder
        self.kind = checkpoint.kind
        self._checkpoint = checkpoint
        self._matrices = dict(matrices)
        self._vectors = dict(vectors)

    @property
    def matrix_roles(self) -> tuple[str, ...]:
        """Roles of all matrices, each once, in the order they are used."""
        return tuple(self._matrices)

    @property
    def vector_roles(self) -> tuple[str, ...]:
        """Roles of all norm weights and biases."""
        return tuple(self._vectors)

    def matrix(self, role: str) -> MatrixSource:
        """Return where a matrix lies; "lm_head" of a tied model is the embedding's.

        Raises
        ------
        KeyError
            The decoder has no such matrix.
        """
        if role == "lm_head":
            role = self.decoder.lm_head.weight
        return self._matrices[role]

    def segments(self, role: str) -> tuple[RowSegment, ...]:
        """Return where a matrix or a vector lies; `KeyError` where the decoder has none."""
        return self._vectors[role] if role in self._vectors else self.matrix(role).segments

    def vector(self, role: str) -> NDArray[np.float32]:
        """Read a norm's weights or a bias.

        Returns
        -------
        float32[n]

        Raises
        ------
        KeyError
            The decoder has no such vector.
        FormatError
            It holds NaN or infinity; names the tensor.
        ReadError
            The file could not be read.
        """
        parts = []
        for segment in self._vectors[role]:
            values = self._checkpoint.read_float32(segment.tensor.name).reshape(-1)
            parts.append(values[segment.first_row : segment.first_row + segment.num_rows])
            if not np.isfinite(parts[-1]).all():
                raise FormatError(
                    f"{segment.tensor.path}: tensor {segment.tensor.name} holds NaN or infinity; "
                    "the file is damaged, get it again"
                )
        return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)


def bind(checkpoint: Checkpoint) -> BoundModel:
    """Return the model that a checkpoint holds.

    Parameters
    ----------
    checkpoint : Checkpoint
        An open GGUF file or Hugging Face directory.

    Raises
    ------
    FormatError
        Metadata of a wrong type or range; a weight missing or of another shape than the config
        says.
    UnsupportedError
        A family, variant or tensor that is not built, named.
    """
    try:
        family, decoder = _decoder(checkpoint)
    except (FormatError, UnsupportedError) as error:
        # Families know the metadata, not the file it came from.
        raise type(error)(f"{checkpoint.path}: {error}") from error
    is_gguf = checkpoint.kind == "gguf"
    table = family.names.gguf if is_gguf else family.names.hf
    prefix = "" if is_gguf else _prefix(family, checkpoint)
    finder = _Finder(checkpoint, decoder.config, table, prefix)
    if not is_gguf:
        decoder = _with_stored_head(decoder, checkpoint, finder)
    matrices = {}
    for role, shape in roles.matrices(decoder).items():
        segments = finder.segments(role, shape)
        matrices[role] = MatrixSource(segments[0].tensor.type, shape, segments)
    vectors = {
        role: finder.segments(role, (length,)) for role, length in roles.vectors(decoder).items()
    }
    if is_gguf and len(decoder.ropes) == 1:
        decoder = replace(decoder, ropes=(_with_tables(decoder.ropes[0], checkpoint, finder),))
    finder.refuse_leftovers(names.GGUF_IGNORED if is_gguf else _hf_ignored(family, decoder))
    return BoundModel(decoder, checkpoint, matrices, vectors)


def _decoder(checkpoint: Checkpoint) -> tuple[Family, Decoder]:
    """Return the family and its layers, from metadata and the list of tensors."""
    metadata = checkpoint.metadata
    if checkpoint.kind != "gguf":
        family = family_of_hf(metadata)
        config = family.config_from_hf(metadata)
        # Chat models often name the token that ends a turn in generation_config.json only.
        _, ends = hf_tokens(Keys(checkpoint.generation_config, "generation_config.json"))
        ends = tuple(dict.fromkeys((*config.eos_token_ids, *ends)))
        return family, family.decoder(replace(config, eos_token_ids=ends), "hf")
    family = family_of_gguf(metadata)
    size_key = f"{family.gguf_architecture}.vocab_size"
    embedding = checkpoint.tensors.get("token_embd.weight")
    if size_key not in metadata and embedding is not None:
        # A file without a tokenizer may leave the size to the embedding.
        metadata = {size_key: embedding.shape[0], **metadata}
    config = family.config_from_gguf(metadata, checkpoint.tensors.keys())
    return family, family.decoder(config, "gguf")


def _prefix(family: Family, checkpoint: Checkpoint) -> str:
    """Return the prefix of this checkpoint's names, told by where its embedding is."""
    for prefix in family.names.hf_prefixes:
        for place in names.places(family.names.hf, "embed_tokens", prefix):
            if place.stem in checkpoint.tensors:
                return prefix
    return family.names.hf_prefixes[0]


def _hf_ignored(family: Family, decoder: Decoder) -> tuple[str, ...]:
    ignored = (*names.HF_IGNORED, *family.names.hf_ignored)
    # A tied head is the embedding even where the checkpoint stores a second copy of it.
    return (
        (*ignored, r"lm_head\.weight")
        if decoder.lm_head.weight == decoder.embed.weight
        else ignored
    )


class _Finder:
    """Looks up roles among a checkpoint's tensors and remembers which were used."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        table: Mapping[str, tuple[names.Stored, ...]],
        prefix: str,
    ) -> None:
        self.path = checkpoint.path
        self.tensors = checkpoint.tensors
        self.config = config
        self.table = table
        self.prefix = prefix
        self.used: set[str] = set()

    def tensor(self, role: str) -> TensorInfo | None:
        """Return the whole tensor that holds a role, if there is one."""
        for place in names.places(self.table, role, self.prefix):
            if place.stem in self.tensors:
                return self.tensors[place.stem]
        return None

    def segments(self, role: str, shape: tuple[int, ...]) -> tuple[RowSegment, ...]:
        """Return the rows that make up a role of this shape."""
        places = names.places(self.table, role, self.prefix)
        for place in places:
            tensor = self.tensors.get(place.stem)
            if tensor is None:
                continue
            if tensor.type not in WEIGHT_TYPES:
                raise UnsupportedError(
                    f"{tensor.path}: tensor {tensor.name} is of type {tensor.type!r}, which is "
                    f"not built; built: {', '.join(WEIGHT_TYPES)}"
                )
            rows = shape[0] if place.cut is None else place.cut.num_rows(self.config)
            if tensor.shape != (rows, *shape[1:]):
                raise FormatError(
                    f"{tensor.path}: tensor {tensor.name} is {_text(tensor.shape)}, "
                    f"the config asks for {_text((rows, *shape[1:]))}"
                )
            runs = ((0, rows),) if place.cut is None else place.cut.rows(self.config)
            self.used.add(tensor.name)
            return tuple(RowSegment(tensor, first, count) for first, count in runs)
        raise FormatError(
            f"{self.path}: tensor {places[0].stem} is missing ({role}, {_text(shape)}); "
            "the checkpoint is incomplete or its config is another model's"
        )

    def refuse_leftovers(self, ignored: tuple[str, ...]) -> None:
        """Refuse tensors that no role asked for."""
        pattern = re.compile("|".join(f"(?:{one})" for one in ignored))
        left = sorted(
            name for name in self.tensors if name not in self.used and not pattern.fullmatch(name)
        )
        if left:
            some = ", ".join(map(shown, left[:3])) + (", ..." if len(left) > 3 else "")
            raise UnsupportedError(
                f"{self.tensors[left[0]].path}: {len(left)} tensors have no place in this "
                f"{self.config.architecture} model: {some}; this variant is not built"
            )


def _with_stored_head(decoder: Decoder, checkpoint: Checkpoint, finder: _Finder) -> Decoder:
    """Return `decoder` with a head of its own where the checkpoint stores another than it says.

    Configs say that the head is tied to the embedding, and some checkpoints store it all the same.
    A second copy is left alone. What differs was trained apart from it and is taken, as in
    transformers; some rows tell.
    """
    if decoder.lm_head.weight != decoder.embed.weight:
        return decoder
    embedding, head = finder.tensor(decoder.embed.weight), finder.tensor("lm_head")
    if embedding is None or head is None:
        return decoder
    if (head.type, head.shape) == (embedding.type, embedding.shape):
        rows = range(0, head.shape[0], -(-head.shape[0] // NUM_COMPARED_ROWS))
        if all(
            np.array_equal(
                checkpoint.read_rows(head.name, row, 1),
                checkpoint.read_rows(embedding.name, row, 1),
            )
            for row in rows
        ):
            return decoder
    return replace(
        decoder,
        config=replace(decoder.config, tie_word_embeddings=False),
        lm_head=replace(decoder.lm_head, weight="lm_head"),
    )


def _with_tables(rope: RopeConfig, checkpoint: Checkpoint, finder: _Finder) -> RopeConfig:
    """Return `rope` with the tables that a GGUF file stores as tensors.

    A file says which layers they are for only where all layers rotate alike.
    """

    def table(name: str) -> tuple[float, ...]:
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            if rope.scaling == "longrope":
                raise FormatError(
                    f"{checkpoint.path}: tensor {name} is missing, and rope scaling longrope "
                    "needs it; the file is incomplete"
                )
            return ()
        finder.used.add(name)
        if tensor.shape != (rope.rotary_dim // 2,):
            raise FormatError(
                f"{tensor.path}: tensor {name} is {_text(tensor.shape)}, "
                f"the config asks for {_text((rope.rotary_dim // 2,))}"
            )
        values = checkpoint.read_float32(name)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise FormatError(f"{tensor.path}: tensor {name} holds numbers that are not positive")
        return tuple(float(value) for value in values)

    if rope.scaling == "longrope":
        return replace(
            rope,
            short_factor=table("rope_factors_short.weight"),
            long_factor=table("rope_factors_long.weight"),
        )
    return replace(rope, freq_factors=table("rope_freqs.weight"))


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
