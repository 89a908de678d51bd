"""numba's njit, without what numba would load for others: before it takes its first function it imports scipy, to see whether there is a BLAS (0.3 s),
and the extensions of all packages that are installed (that of awkward, which gigatoken brings: 0.9 s). No kernel here uses either.

    from tasks.corpus.compiled import njit
"""

import importlib

from numba import njit
from numba.core import entrypoints
from numba.np import linalg

__all__ = ["njit"]


def _no_blas() -> None:
    raise ImportError("no kernel uses a BLAS")


def _load() -> None:
    entrypoints._already_initialized = True
    asked, linalg.ensure_blas = linalg.ensure_blas, _no_blas
    try:
        importlib.import_module("numba.np.arraymath")  # it asks once, when it is imported
    finally:
        linalg.ensure_blas = asked


_load()
