"""Background: a process of its own for a mount, whose starter returns once the mount answers.  Blocking.

Owns: the fork, what the child keeps of its starter, the one message that the child sends back.
Does not know: what a mount is.
Invariant: the child keeps no pipe, terminal or descriptor of its starter open, so that `$(tagfs mount --background …)`
returns.
"""

import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import NoReturn

MESSAGE_LIMIT = 1 << 16
"""Bytes that the starter reads at once."""


class Reporter:
    """The child's end of the pipe: its first word goes to the starter, which then exits."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def send(self, code: int, sentence: str) -> bool:
        """Whether it was the first word, and so was sent."""
        if self._descriptor is None:
            return False
        try:
            os.write(self._descriptor, json.dumps([code, sentence]).encode() + b"\n")
        except OSError:
            pass  # The starter was killed: nobody waits any more.
        os.close(self._descriptor)
        self._descriptor = None
        return True


def start(child: Callable[[Reporter], int], keep: frozenset[int], is_log: Callable[[], bool]) -> tuple[int, str]:
    """Run `child` in a session of its own; -> (exit code, sentence) of its first word.  Call before any thread exists.

    Args:
        child: its result is the exit code of the new process.
        keep: descriptors that the child needs beside its own.
        is_log: whether standard error is a log that outlives the starter.
    """
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _become(child, writing, keep, is_log)
    os.close(writing)
    return _await(process, reading)


def _await(process: int, reading: int) -> tuple[int, str]:
    def stop(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    message = b""
    try:
        # Not to the end: a process that the child has started may have the other end too.
        while b"\n" not in message and (part := os.read(reading, MESSAGE_LIMIT)):
            message += part
    except BaseException:
        os.kill(process, signal.SIGTERM)
        raise
    finally:
        os.close(reading)
    if message:
        code, sentence = json.loads(message)
        return int(code), str(sentence)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status < 0:
        return 1, f"the mount's process was killed ({signal.Signals(-status).name}) before the mount answered"
    return status or 1, "the mount's process ended before the mount answered; try without --background"


def _become(
    child: Callable[[Reporter], int], writing: int, keep: frozenset[int], is_log: Callable[[], bool]
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        _let_go({writing, *keep}, is_log())
        code = child(Reporter(writing))
    finally:
        # Without the exit of the interpreter: its clean-up belongs to the starter.
        os._exit(code)


def _let_go(keep: set[int], keeps_errors: bool) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1) if keeps_errors else (0, 1, 2):
        os.dup2(nothing, standard)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass  # The descriptor of the listing itself.


def is_regular(descriptor: int) -> bool:
    """Whether a descriptor is an ordinary file, as in `2>> tagfs.log`."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False
