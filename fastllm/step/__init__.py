"""One forward pass: a `Batch` in, logits out, no Python between the layers.

``weights`` reads and packs a bound model, ``program`` turns its layers into the table of operations
that ``kernels.interpreter`` runs, ``crew`` are the threads that run it. A batch goes through
``checks``, ``inputs`` are the rows that its tokens bring, ``staging`` puts them and its words in
place. ``runner`` is the door to all of it; ``plan`` says before how much memory that will take.
"""
