"""Supervisor: mounts, has a process without privileges serve, and unmounts when that ends.  Blocking.

Owns: the two processes: which of them holds the device, signals, the exit code; the service manager's watchdog.
Does not know: the store, what is served, trio.
Invariant: once the server runs this process has no descriptor of the device: else programs would wait for ever when
the server dies, instead of being told so.
"""

import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.unicode_escape
import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from tagfs import asking, device, mountpoint, notify, privileges
from tagfs.errors import MountRefused, ServerFailed
from tagfs.settings import MountSettings

log = logging.getLogger(__name__)

LOADED_BEFORE = (encodings.ascii, encodings.latin_1, encodings.idna, encodings.unicode_escape)
"""What Python loads when it is first needed: by then its directory may not be readable any more."""

ENDING = (signal.SIGTERM, signal.SIGINT)
PASSED_ON = (signal.SIGHUP, signal.SIGUSR1)

LINE_LIMIT = 1 << 14

Serve = Callable[[MountSettings, Callable[[str], None]], None]
Judge = Callable[[BaseException], tuple[int, str]]


def serve(
    settings: MountSettings,
    announce: Callable[[str], None],
    load: Callable[[], Serve],
    judge: Judge,
    environment: Mapping[str, str],
) -> None:
    """Mount, and return when the mount has ended.  Call before any thread exists.

    Args:
        announce: called, here, with each line that the server announces.
        load: -> what serves; called in the server's process while it may still read everything.
        judge: an error -> its exit code and sentence.

    Raises:
        MountRefused: nothing was mounted.
        ServerFailed: with the server's exit code; nothing stays mounted.
    """
    wanted = privileges.account(settings.drop_user)
    mountpoint.prepare(settings.mountpoint, settings.store, settings.make_mountpoint)
    # Whoever asks for the path afterwards waits for the server's answer.
    point = os.path.realpath(settings.mountpoint)
    settings = replace(
        settings,
        mountpoint=point,
        uid=os.getuid() if settings.uid is None else settings.uid,
        gid=os.getgid() if settings.gid is None else settings.gid,
    )
    waker, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
    before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, _noted) for signum in (*ENDING, *PASSED_ON)}
    try:
        server = _mounted(settings, wanted, load, judge)
        try:
            _Supervisor(point, server, announce, woken, environment).run()
        finally:
            os.close(server.lines)
            os.close(server.pidfd)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(before)
        os.close(waker)
        os.close(woken)


def _mounted(settings: MountSettings, wanted: privileges.Account, load: Callable[[], Serve], judge: Judge) -> "_Server":
    request = device.Request(settings.mountpoint, settings.store, settings.read_only, settings.allow_other)
    descriptor = device.mount(request)
    try:
        return _start(replace(settings, device=descriptor), wanted, load, judge)
    except BaseException:
        _unmount(settings.mountpoint)
        raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Server:
    """The process that serves; `lines` is what it says: JSON, a line each."""

    process: int
    pidfd: int
    lines: int


class _Supervisor:
    def __init__(
        self,
        point: str,
        server: _Server,
        announce: Callable[[str], None],
        woken: int,
        environment: Mapping[str, str],
    ) -> None:
        self._point = point
        self._server = server
        self._announce = announce
        self._woken = woken
        self._was_told_to_end = False
        self._was_announced = False
        self._said = b""
        self._failure: tuple[int, str] | None = None
        self._manager = notify.ServiceManager(environment)
        interval = notify.watchdog_interval(environment) if self._manager else None
        self._look_every = None if interval is None else interval / 3
        self._look_at = time.monotonic()
        self._looking: tuple[int, int] | None = None
        """Process and pidfd of the child that looks at the mount; one at a time."""

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (self._woken, self._server.lines, self._server.pidfd):
            poll.register(descriptor, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll(self._patience())}
                if self._woken in ready:
                    for signum in os.read(self._woken, 4096):
                        self._act(signum)
                if self._server.lines in ready and not self._listen():
                    poll.unregister(self._server.lines)
                if self._server.pidfd in ready:
                    while self._listen():
                        pass
                    self._judge(os.waitstatus_to_exitcode(os.waitpid(self._server.process, 0)[1]))
                    return
                self._look(poll)
        finally:
            if self._looking is not None:
                os.close(self._looking[1])
                os.kill(self._looking[0], signal.SIGKILL)

    # -- signals

    def _act(self, signum: int) -> None:
        if signum in PASSED_ON:
            os.kill(self._server.process, signum)
            return
        if signum not in ENDING:
            return
        if self._was_told_to_end:
            os.kill(self._server.process, signal.SIGTERM)
            return
        self._was_told_to_end = True
        self._manager.tell(notify.STOPPING)
        try:
            mountpoint.unmount(self._point)  # the kernel tells the server
        except MountRefused as error:
            log.info("%s; the server lets open files come to their end for a while", error)
            _unmount(self._point)
            os.kill(self._server.process, signal.SIGTERM)

    # -- what the server says

    def _listen(self) -> bool:
        """Take what it has said so far; -> whether it may say more."""
        try:
            part = os.read(self._server.lines, LINE_LIMIT)
        except BlockingIOError:
            return False
        self._said += part
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._said) > LINE_LIMIT:
            self._said = b""
        return bool(part)

    def _take(self, line: bytes) -> None:
        """A line of a process with fewer rights: nothing but a sentence, perhaps with an exit code."""
        try:
            code, sentence = json.loads(line)
            sentence = "".join(sign if sign.isprintable() else "?" for sign in str(sentence))
        except (TypeError, ValueError, RecursionError):
            return
        if code is None:
            self._was_announced = True
            mountpoint.allow_background(self._point)
            self._announce(sentence)
        elif type(code) is int and 0 < code < 256:
            self._failure = code, sentence

    def _judge(self, status: int) -> None:
        """The server has ended."""
        stayed = _clear(self._point)
        # Whoever is told to end while it starts finds the mount gone.
        if status == 0 or (self._was_told_to_end and not self._was_announced):
            return
        if self._failure is not None:
            raise ServerFailed(*self._failure)
        if status < 0:
            how = f"was killed ({_name_of(-status)})"
        else:
            how = f"ended with {status}"
        raise ServerFailed(1, f"{self._point}: the process that served it {how}{'; unmounted' if stayed else ''}")

    # -- the watchdog

    def _patience(self) -> int | None:
        """Milliseconds until there is something to do whatever happens."""
        if self._look_every is None:
            return None
        return max(0, int((self._look_at - time.monotonic()) * 1000) + 1)

    def _look(self, poll: "select.poll") -> None:
        """Have a child ask the mount, one that may hang for as long as the server does; and tell what it has seen."""
        if self._look_every is None:
            return
        if self._looking is not None:
            process, pidfd = self._looking
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                poll.unregister(pidfd)
                os.close(pidfd)
                self._looking = None
                if asking.is_served(os.waitstatus_to_exitcode(status)):
                    self._manager.tell(notify.ALIVE)
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + self._look_every
        if self._looking is None:
            try:
                self._looking = asking.start(self._point)
            except OSError as error:
                # No processes or descriptors are left now; the server is none the worse.
                log.warning("%s: cannot be looked at: %s", self._point, error)
                return
            poll.register(self._looking[1], select.POLLIN)


def _start(settings: MountSettings, wanted: privileges.Account, load: Callable[[], Serve], judge: Judge) -> _Server:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    supervisor = os.getpid()
    signals = {*ENDING, *PASSED_ON}
    # A signal between the fork and the server's own handlers waits for those.
    was = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        process = os.fork()
        if process == 0:
            _serve(settings, wanted, load, judge, writing, supervisor)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, was)
    os.close(writing)
    return _Server(process, os.pidfd_open(process), reading)


def _serve(
    settings: MountSettings,
    wanted: privileges.Account,
    load: Callable[[], Serve],
    judge: Judge,
    writing: int,
    supervisor: int,
) -> NoReturn:
    """In the server's process."""
    code = 1

    def say(code: int | None, sentence: str) -> None:
        try:
            os.write(writing, json.dumps([code, sentence[: LINE_LIMIT // 8]]).encode() + b"\n")
        except OSError:
            pass  # The supervisor was killed; the signal for that comes.

    try:
        signal.set_wakeup_fd(-1)
        for signum in (*ENDING, *PASSED_ON):
            signal.signal(signum, signal.SIG_DFL)
        # Away from the terminal's Ctrl-C, which the supervisor acts on.
        os.setsid()
        os.environ.pop(notify.WATCHDOG_TIME, None)
        serving = load()
        privileges.drop(wanted)
        privileges.end_with_parent(signal.SIGTERM, supervisor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, *PASSED_ON})
        serving(settings, lambda line: say(None, line))
        code = 0
    except BaseException as error:
        code, sentence = judge(error)
        say(code, sentence)
        log.debug("the server failed", exc_info=error)
    finally:
        os._exit(code)


def _name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # most of the real-time signals have none
        return f"signal {signum}"


def _unmount(point: str) -> bool:
    """Out of sight, whoever uses it; -> whether it was there."""
    try:
        mountpoint.unmount(point, lazy=True)
    except MountRefused:
        return False
    return True


def _clear(point: str) -> bool:
    """Unmount what a server that has ended left, and nothing that was mounted there since; -> whether there was."""
    try:
        return mountpoint.clear_dead(point)
    except MountRefused as error:
        log.error("%s", error)
        return False


def _noted(signum: int, frame: object) -> None:
    """Its number is in the pipe that wakes the supervisor."""
