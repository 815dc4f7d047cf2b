"""What can Python not do? Aligned reads in threads, and huge pages.

One Cython module, `fastllm._ext.reader`, and it imports nothing. It is optional: where it
was not built (no compiler, not Linux) or is not `WANTED`, `fastllm.flash.pure` reads and
`fastllm.memory.pages` maps in its place.
"""

from fastllm.environment import switch

WANTED = switch("FASTLLM_PURE") is not True
