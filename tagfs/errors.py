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


class ServerFailed(TagfsError):
    """The process that served a mount for this one has ended, and not because it was told to.

    Args:
        code: its exit code, or what stands for one.
        sentence: why.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


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
        advice: what to do about it.
    """

    def __init__(self, path: str, holder: str, advice: str = "`tagfs unmount` its mount first") -> None:
        super().__init__(f"{path} is held by another writer: {holder}")
        self.path = path
        self.holder = holder
        self.advice = advice


class MountRefused(TagfsError):
    """The mount point, the device or the rights do not allow to mount; the sentence says what to do."""


class SettingRefused(TagfsError):
    """A flag or a variable has a value that cannot be used, or that would have no effect."""


class InventoryIncomplete(TagfsError):
    """What ought to exist cannot be told completely now, so nothing may be deleted for not being told."""


class LedgerUnreadable(TagfsError):
    """What was deleted of a store lately, and whether something is held, cannot be told from its ledger."""


class ManifestInvalid(InventoryIncomplete):
    """A manifest that does not say what exists.

    Args:
        line: 1-based number of the line.
        reason: what is wrong there.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class ManifestsChanging(InventoryIncomplete):
    """Manifests that are being changed while they are read, or were a moment ago."""


class SweepHeld(TagfsError):
    """Orphans that stay, because a guard holds them; the sentence says which and what to do."""


class ClusterUnknown(TagfsError):
    """Where the cluster is, or who asks, cannot be told; the sentence names the file or variable, and the field."""


class CredentialsMissing(TagfsError):
    """A token file, a certificate or a credential plugin gave nothing that could be shown to the cluster."""


class ApiFailed(TagfsError):
    """The cluster's API server did not answer a request; base of what it said instead."""


class ApiUnreachable(ApiFailed):
    """No whole answer came: no connection, no trust, a cut, silence."""


class AnswerInvalid(ApiFailed):
    """An answer that no API server of Kubernetes gives; something else may stand between."""


class ApiRefused(ApiFailed):
    """The API server answered with an error.

    Args:
        status: HTTP status.
        message: what it said.
        retry_after: seconds after which it wants to be asked again, where it said so.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class CredentialsRefused(ApiRefused):
    """401: who asks is not known to the cluster, or no longer."""


class RightsMissing(ApiRefused):
    """403: who asks may not."""


class ResourceMissing(ApiRefused):
    """404: the cluster does not serve that kind of object."""


class VersionExpired(ApiRefused):
    """410: what happened since that version is no longer known; only a fresh list tells."""


class ApiBusy(ApiRefused):
    """429 or 503: later."""


class TooManyListeners(TagfsError):
    """As many programs listen to the changes of a mount as it can tell."""
