"""Errors: every exception that tagfs raises, named by the state that it found.  Pure.

Owns: the names, and the sentence that each one says to a person.
Does not know: errnos (`operations` has that table), exit codes (`cli` has that one).
"""


class TagfsError(Exception):
    """Base of all errors that tagfs raises on purpose.  `str()` of each is a sentence for a person."""


class NameRefused(TagfsError):
    """A namespace, repository or file name that the layout has no place for."""


class TagListInvalid(TagfsError):
    """Bytes that are not a tag list.

    Args:
        line: 1-based number of the offending line, or None where the writes were not sequential.
        reason: what is wrong with it.
    """

    def __init__(self, line: int | None, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line is not None else reason)
        self.line = line
        self.reason = reason


class ListTooLarge(TagfsError):
    """A tag list over the limit of `--max-list-size`."""


class ListCorrupt(TagfsError):
    """A variant that cannot be decoded to what it promises.

    Args:
        path: the file, relative to the store.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ListMissing(TagfsError):
    """No variant of the repository key is in the store."""


class RepositoryMissing(TagfsError):
    """The directory of the namespace or of the repository is not in the store."""


class DirectoryNotEmpty(TagfsError):
    """A directory that still shows something was to be removed."""


class AlreadyExists(TagfsError):
    """The name to be made is taken."""


class NotPermitted(TagfsError):
    """The layout does not allow it, whoever asks."""


class OtherDirectory(TagfsError):
    """A rename that would leave its directory; programs then copy instead."""


class VersionGone(TagfsError):
    """The version of a list that was looked up is no longer the one beneath; look it up again."""


class HandlePoisoned(TagfsError):
    """A handle that was given a byte which can never become part of a list; closing it commits nothing."""


class EmptyingRefused(TagfsError):
    """A list that is not empty was opened with O_TRUNC and closed without a byte written."""


class StagingFull(TagfsError):
    """What open writers and scratch files hold in memory has reached its bound."""


class CommitUncertain(TagfsError):
    """A commit failed after its rename: readers see the new list, a power cut may bring back the old one."""


class StoreWaiting(TagfsError):
    """The store is not ready to be read (not prepared yet, being wiped, or gone); it may become so."""


class StoreRefused(TagfsError):
    """The directory is no tag store that this version may touch; the sentence says what was found."""


class StoreHeld(TagfsError):
    """Another process writes to the store.

    Args:
        path: the store.
        holder: who holds it, as far as the kernel tells (`pid 12 (tagfs mount …)`).
    """

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"{path} is held by another writer: {holder}")
        self.path = path
        self.holder = holder


class MountRefused(TagfsError):
    """The mount point, the device or the rights do not allow to mount; the sentence says what to do."""


class SettingRefused(TagfsError):
    """A flag or a variable has a value that cannot be used, or that would have no effect."""
