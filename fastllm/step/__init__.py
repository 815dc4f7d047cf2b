"""One forward pass: a `Batch` in, logits out, no Python between the layers.

``weights`` reads and packs a bound model, ``program`` turns its layers into the table of operations
that ``kernels.interpreter`` runs, ``crew`` are the threads that run it, ``runner`` is the door.
"""
