"""A FOLDER AS A GGUF FILE: what would lie where if a Hugging Face folder were one.

`as_gguf` gives a checkpoint like any other of kind "gguf", with names, metadata and the order of
rows of that format; its bytes come from the folder's files as they are asked for. What a family's
two spellings differ in is read off its decoders (`tensors`), so there is no table of conversions
here. Then the result is bound as a file would be and compared with the folder (`check`): what GGUF
cannot say is refused by name, never dropped.
"""

from fastllm.conversion.folder import FolderAsGGUF, as_gguf

__all__ = ["FolderAsGGUF", "as_gguf"]
