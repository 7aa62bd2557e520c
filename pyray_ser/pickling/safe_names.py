"""Predefined sets of names for safe mode (``allow=``)."""

from __future__ import annotations

__all__ = ["SAFE_NUMPY"]

# Since numpy 2, numpy's private modules are called numpy._core. Older pickles and older versions of numpy use
# numpy.core.
_CORES = ("numpy._core", "numpy.core")

SAFE_NUMPY: frozenset[str] = frozenset(
    {
        "numpy:ndarray",
        "numpy:dtype",
        "numpy:bool",
        "numpy:bool_",
        *(f"{core}.multiarray:_reconstruct" for core in _CORES),
        *(f"{core}.multiarray:scalar" for core in _CORES),
        *(f"{core}.numeric:_frombuffer" for core in _CORES),
        # In protocols 0 to 2, the in-band bytes of arrays are written as calls of this function.
        "_codecs:encode",
    }
)
"""
Names that pickles of plain arrays, numpy scalars and dtypes consist of.

None of them has side effects, and none calls anything that is not in the set. In safe mode ``_codecs:encode`` is replaced by a
function that encodes latin-1 and nothing else. States of dtypes and arrays that NumPy does not write itself are refused.
docs/how-to/safe-loading.md describes what a pickle of these names can do.
Join it with the names of your own classes: ``allow=SAFE_NUMPY | {"mypackage.model:Config"}``.
"""
