"""Heap: memory that is free, given back to the system.  Blocking.

Owns: that what only a moment needed does not stay with every mount.
Does not know: who needed it.
"""

import ctypes
import gc

_libc = ctypes.CDLL(None)


def give_back() -> None:
    """A millisecond or two.  malloc_trim(3); musl has none, and gives back by itself."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def settle() -> None:
    """Give back what only imports needed, 1.5 MiB in every pod; what is left is not looked through again."""
    gc.collect()
    gc.freeze()
    give_back()
