"""Postponed: libraries that the daemon's libraries import and a mount seldom uses, loaded at their first use.  Pure.

Owns: which ones, and the stand-ins that are imported in their place.
Does not know: who uses them.

trio imports all that a program might do with TLS; OpenSSL and its wrappers are 5.2 MiB of a mount's 31, in every pod,
and only an inventory of a cluster, or a revision, ever uses them.  `ctypes.util` imports `shutil`, which brings bzip2
and lzma, and `pathlib` what reads addresses.  `importlib.util.LazyLoader` does not do for this:
before Python 3.12 the second import of such a module loads it.
"""

import importlib
import sys
from types import ModuleType

MODULES = ("ssl", "hmac", "idna", "shutil", "ipaddress")


def postpone() -> None:
    """Let each of MODULES that is not imported yet be loaded when one of its attributes is first asked for."""
    for name in MODULES:
        if name not in sys.modules:
            sys.modules[name] = _StandIn(name)


class _StandIn(ModuleType):
    """Has what the real module has.  Whoever imported it first keeps it, later ones get the real one."""

    def __getattr__(self, attribute: str) -> object:
        name = self.__name__
        if attribute.startswith("__") and sys.modules.get(name) is self:
            # The import system and `inspect` look at every module; that is no use of it.
            raise AttributeError(f"module {name!r} is not loaded yet")
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)
