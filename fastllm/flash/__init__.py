"""Bytes from disk in time, and the memory to put them in.

=============  ===============================================================================
`arena`        one private huge-page region, handed out piece by piece: weights, KV cache, rings
`reader`       a file as a stream of ranges, read ahead of whoever packs them
`backend`      which implementation does the work: the compiled one or its twin
`pure`         the twin in plain Python, for systems without the extension
=============  ===============================================================================
"""
