"""Privileges: becoming a user who may do nothing but use its own files.  Blocking.

Owns: whom to become, and the order in which rights are given up, so that none is left to take another back.
Does not know: what they were needed for.
"""

import ctypes
import os
import pwd
import signal
from dataclasses import dataclass

from tagfs.errors import MountRefused

NOBODY = 65534
"""What `nobody` is where nothing else is known: in an image without accounts."""

LAST_ID = (1 << 32) - 2
"""The one after it is -1, which tells setresuid(2) to change nothing."""

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64
"""More than any kernel has so far; one that it does not have cannot be dropped, nor had."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process becomes."""

    uid: int
    gid: int


def account(name: str | None) -> Account:
    """The account of that name, or of the number or numbers in it (`65534`, `65534:1000`); None: who should serve.

    Only root can become somebody else; who is not keeps the account, and gives up only what it may do beyond it.

    Raises:
        MountRefused: there is no such account, it is root's, or only root could become it.
    """
    own = Account(os.geteuid(), os.getegid())
    if name is None:
        found = own if own.uid != 0 else _named("nobody") or Account(NOBODY, NOBODY)
    else:
        uid, _, gid = name.partition(":")
        numbers = Account(int(uid), int(gid or uid)) if (uid + gid).isdecimal() else None
        known = numbers or _named(name)
        if known is None:
            raise MountRefused(f"there is no user {name} on this machine, who could serve without privileges")
        found = known
    if max(found.uid, found.gid) > LAST_ID:
        raise MountRefused(f"{name}: ids are at most {LAST_ID}")
    if found.uid == 0:
        raise MountRefused("root does not serve without privileges: name another user (--drop-user)")
    if own.uid != 0 and found != own:
        raise MountRefused(f"only root can become uid {found.uid}: run tagfs as root, or as that user")
    return found


def drop(wanted: Account) -> None:
    """Become it, for good: no capability stays, none can come back, not even by a set-user-id program.

    OSError where the kernel refuses a step: what then runs on may have had more rights than it should.
    """
    if os.geteuid() == 0:
        for capability in range(_CAPABILITIES):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        # The groups before the user: afterwards nothing may be changed.
        os.setgroups([])
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _clear_capabilities()
    _required(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def end_with_parent(signum: signal.Signals, parent: int) -> None:
    """Have the kernel send this process a signal when its parent, `parent`, ends; after `drop`, which would undo it."""
    _required(_libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0), "the death signal")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _named(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid)


def _clear_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    _required(_libc.capset(header, sets), "capabilities")


def _required(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what} cannot be set: {os.strerror(number)}")
