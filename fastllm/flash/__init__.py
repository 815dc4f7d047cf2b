"""Bytes from disk in time.

=============  ===============================================================================
`reader`       a file as a stream of ranges, read ahead of whoever packs them
`backend`      which implementation does the work: the compiled one or its twin
`pure`         the twin in plain Python, for systems without the extension
=============  ===============================================================================
"""
