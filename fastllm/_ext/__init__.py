"""What can Python not do? Aligned reads in threads, and huge pages.

One Cython module, `fastllm._ext.reader`, and it imports nothing of ours. It is optional: where it
was not built (no compiler, not Linux, ``FASTLLM_PURE=1``) `fastllm.flash.pure` stands in for it.
"""
