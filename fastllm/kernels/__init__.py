"""How a layer is computed on this CPU: Numba kernels, compiled once into object files.

``road`` chooses the instruction set, ``target`` is the one that a build process compiles for,
``layouts`` and ``activations`` say how operands lie in memory, ``dot``, ``matmul``, ``attention``
and others generate the code, ``ops`` are the operations of a step, ``interpreter`` runs a table of
them, ``crew`` says which threads and when, ``build`` compiles a unit in a subprocess, ``objects``
keeps the results and loads them. Only ``build`` and what it imports know numba; the engine itself
imports ``road``, ``layouts``, ``activations``, ``moves``, ``words``, ``ops`` and ``crew``
(``jit.COMPILING``), ``interpreter_codes`` and ``objects``.
"""
