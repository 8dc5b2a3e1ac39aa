"""Heap: memory that is free, given back to the system.  Blocking.

Owns: that what only a moment needed does not stay with every mount.
Does not know: who needed it.
"""

import ctypes


def give_back() -> None:
    """A millisecond or two.  malloc_trim(3); musl has none, and gives back by itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
