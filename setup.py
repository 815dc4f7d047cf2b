"""The one compiled module; everything else is in pyproject.toml.

It is built on Linux, where a C compiler is found. Without it (or with ``FASTLLM_PURE=1``) the
package still works: `fastllm.flash.pure` and `fastllm.memory.pages` do the same in plain Python,
more slowly.
"""

import os
import sys

from setuptools import Extension, setup


def extensions() -> list[Extension]:
    """Return the extension, or nothing where it is not wanted or cannot work."""
    if os.environ.get("FASTLLM_PURE") == "1" or not sys.platform.startswith("linux"):
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:  # an install without build isolation
        return []
    reader = Extension(
        "fastllm._ext.reader",
        ["fastllm/_ext/reader.pyx"],
        depends=["fastllm/_ext/linux.pxd"],
        extra_compile_args=["-O2", "-g0", "-pthread"],
        extra_link_args=["-pthread"],
    )
    modules = list(cythonize([reader], build_dir="build/cython", quiet=True))
    for module in modules:
        module.optional = True  # a failing compiler costs speed, not the install
    return modules


setup(ext_modules=extensions())
