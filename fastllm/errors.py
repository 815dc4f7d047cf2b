"""Every error that fastllm raises on purpose.

::

    FastLLMError                       one line: what, where, what to do
    ├── FormatError(ValueError)        a file is damaged or lies about itself
    ├── UnsupportedError               a sound file, but of a kind that is not built
    │   └── KVRangeError               keys or values beyond what the KV cache holds
    ├── RequestError(ValueError)       a call asks for something impossible
    │   └── ContextLengthError         more tokens than the context holds
    ├── ModelNotFoundError             no such model, name or file
    ├── DownloadError(OSError)         a model could not be fetched or verified
    ├── ReadError(OSError)             the disk refused, or the file changed while it was read
    ├── BudgetError(MemoryError)       it does not fit in the memory there is
    ├── KernelError(RuntimeError)      a kernel could not be built or loaded
    └── AnswerTimeoutError(TimeoutError)  an answer has not come in the time given

The command line prints ``str(error)`` and leaves with ``exit_code``; a traceback only with ``-v``.
"""

from __future__ import annotations


class FastLLMError(Exception):
    """Base of all errors raised by fastllm; its text is one line made for the user."""

    exit_code = 1


class FormatError(FastLLMError, ValueError):
    """A file is damaged, truncated or contradicts itself; the text says where."""


class UnsupportedError(FastLLMError, NotImplementedError):
    """The file is sound, but its family, type or tokenizer is not built into fastllm."""


class KVRangeError(UnsupportedError):
    """A key or value is too large for the type of the KV cache.

    Attributes
    ----------
    sequence : int
        Number of the sequence in the batch that was computed.
    """

    def __init__(self, message: str, sequence: int) -> None:
        super().__init__(message)
        self.sequence = sequence

    def __reduce__(self) -> tuple[type[KVRangeError], tuple[str, int]]:
        """Pickle with both arguments."""
        return type(self), (str(self), self.sequence)


class RequestError(FastLLMError, ValueError):
    """A request cannot be served as asked; the text says which value and what is allowed."""


class ContextLengthError(RequestError):
    """A request needs more tokens than the context holds; the text names both numbers."""


class ModelNotFoundError(FastLLMError, LookupError):
    """No model of this name, no file at this path."""


class DownloadError(FastLLMError, OSError):
    """A model could not be downloaded, or what arrived is not what was promised."""


class ReadError(FastLLMError, OSError):
    """Bytes that the file promised could not be read."""


class BudgetError(FastLLMError, MemoryError):
    """The model does not fit in the memory that this process may use; the text has the sum."""


class KernelError(FastLLMError, RuntimeError):
    """A compute kernel could not be built, loaded or chosen on this machine."""


class AnswerTimeoutError(FastLLMError, TimeoutError):
    """An answer has not come within the time that its caller would wait; the request goes on."""
