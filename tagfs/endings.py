"""Endings: how the process ends: the one table error -> exit code, and what is said of an error.  Pure.

Owns: every exit code and what it means.
Does not know: who ends, where a sentence is printed.
"""

from dataclasses import dataclass

from tagfs import errors

USAGE = 2
PROBLEMS_FOUND = 6
DISK_FAILED = 8
INTERRUPTED, PIPE_CLOSED = 130, 141
"""128 and the number of the signal, as a shell tells it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One exit code: what it means, and the errors that end in it (the closest class counts)."""

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()


ENDINGS = (
    Ending(0, "done"),
    Ending(
        1,
        "unexpected: a defect; please report it with what --log-level debug prints",
        (
            Exception,
            errors.TagfsError,
            errors.AlreadyExists,
            errors.DirectoryNotEmpty,
            errors.EmptyingRefused,
            errors.HandlePoisoned,
            errors.ListMissing,
            errors.LedgerUnreadable,
            errors.ListTooLarge,
            errors.NotPermitted,
            errors.OtherDirectory,
            errors.RepositoryMissing,
            errors.ServerFailed,
            errors.StagingFull,
            errors.TagListInvalid,
            errors.TooManyListeners,
            errors.VersionGone,
        ),
    ),
    Ending(USAGE, "usage: an argument, option or variable cannot be used", (errors.SettingRefused, errors.NameRefused)),
    Ending(3, "the store was refused: it is none, or not one that this version may touch", (errors.StoreRefused,)),
    Ending(4, "the store is held by another writer", (errors.StoreHeld,)),
    Ending(5, "cannot mount, or unmount: the mount point, /dev/fuse or the rights", (errors.MountRefused,)),
    Ending(PROBLEMS_FOUND, "problems were found: in the store, or by the doctor", (errors.ListCorrupt,)),
    Ending(7, "the store was not ready within --wait", (errors.StoreWaiting,)),
    Ending(DISK_FAILED, "the disk, or the output, failed", (OSError, errors.CommitUncertain)),
    Ending(
        9,
        "which lists ought to exist could not be told: the cluster, or the manifests; nothing was deleted",
        (errors.InventoryIncomplete, errors.ClusterUnknown, errors.CredentialsMissing, errors.ApiFailed),
    ),
    Ending(10, "orphans were held: too many would go, or the inventory is empty", (errors.SweepHeld,)),
    Ending(INTERRUPTED, "interrupted", (KeyboardInterrupt,)),
    Ending(PIPE_CLOSED, "nobody read the output to its end", (BrokenPipeError,)),
)


def exit_code(error: BaseException) -> int:
    """The exit code of an error, by its closest class in ENDINGS."""
    if isinstance(error, errors.ServerFailed):
        return error.code
    codes = {kind: ending.code for ending in ENDINGS for kind in ending.errors}
    return next((codes[kind] for kind in type(error).__mro__ if kind in codes), 1)


def table() -> str:
    """All of it, as help has it."""
    return "exit codes:\n" + "\n".join(f"  {ending.code:<4} {ending.meaning}" for ending in ENDINGS)


def judged(error: BaseException) -> tuple[int, str]:
    """Exit code of an error, and the sentence that says it to a person."""
    return exit_code(error), _sentence(error) if isinstance(error, Exception) else type(error).__name__


def _sentence(error: Exception) -> str:
    if isinstance(error, errors.StoreHeld):
        return f"{error}; {error.advice}"
    if isinstance(error, errors.TagfsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the disk or the output failed'}: {error.strerror}"
    return f"unexpected {type(error).__name__}: {error}; please report it with what --log-level debug prints"
