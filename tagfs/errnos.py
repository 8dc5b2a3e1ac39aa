"""Errnos: what a program is told of an error.  Pure.

Owns: the one table from error to errno; which errors a person should know of, and how often they are logged.
Does not know: who asks.
"""

import errno
import logging
import time
from collections.abc import Callable

from tagfs import errors

log = logging.getLogger(__name__)

REPEAT_AFTER = 60.0
"""Seconds in which the same complaint about the disk is not logged twice."""

ERRNOS: dict[type[errors.TagfsError], int] = {
    errors.NameRefused: errno.EINVAL,
    errors.TagListInvalid: errno.EINVAL,
    errors.HandlePoisoned: errno.EINVAL,
    errors.EmptyingRefused: errno.EINVAL,
    errors.ListTooLarge: errno.EFBIG,
    errors.ListCorrupt: errno.EIO,
    errors.ListMissing: errno.ENOENT,
    errors.RepositoryMissing: errno.ENOENT,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.AlreadyExists: errno.EEXIST,
    errors.NotPermitted: errno.EPERM,
    errors.OtherDirectory: errno.EXDEV,
    errors.VersionGone: errno.ESTALE,
    errors.StagingFull: errno.ENOSPC,
    errors.CommitUncertain: errno.EIO,
    errors.StoreWaiting: errno.EAGAIN,
    errors.StoreRefused: errno.EIO,
    errors.TooManyListeners: errno.EAGAIN,
}
"""What a program is told of each error; one that is not here is EIO."""

PASSED_ON = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE})
"""Errnos of the disk that mean the same to a program; all others are EIO to it."""

_COMPLAINED = (errors.ListCorrupt, errors.CommitUncertain, errors.StoreRefused)
"""Errors that are logged where they are answered; the others are the program's own business, or logged before."""


class Complaints:
    """Logs each sentence once in REPEAT_AFTER, however often a program runs into it."""

    _KEPT = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def say(self, sentence: str) -> None:
        now = self._clock()
        if now - self._said.get(sentence, -REPEAT_AFTER) < REPEAT_AFTER:
            return
        if len(self._said) >= self._KEPT:
            self._said.clear()
        self._said[sentence] = now
        log.error("%s", sentence)


_complaints = Complaints()


def errno_of(error: BaseException) -> int:
    """The errno that an error is answered with; logs what a person should know of."""
    if isinstance(error, errors.TagfsError):
        if isinstance(error, _COMPLAINED):
            _complaints.say(str(error))
        return next((ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS), errno.EIO)
    if isinstance(error, OSError) and error.errno is not None:
        _complaints.say(f"the disk failed: {error}")
        return error.errno if error.errno in PASSED_ON else errno.EIO
    log.error("an error that should not happen, answered with EIO", exc_info=error)
    return errno.EIO
