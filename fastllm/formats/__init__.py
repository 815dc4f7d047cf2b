"""Where in the file is it? GGUF, safetensors, and the checkpoint that hides which of them it is.

Every file is taken as hostile: lengths, counts and offsets are checked against the size of the file
before anything is allocated, and what is wrong is named with its place.
"""
