"""A tagfs that really mounts: a child process, started as a user would, whose log is read back.

Every Daemon is stopped and unmounted at the end of its test, also when the test fails.  A WARNING or worse in the log
that the test did not expect fails it.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagfs import mountpoint
from tagfs.errors import MountRefused

PATIENCE = 20.0
"""Seconds that anything which should happen at once may take on a busy machine."""

_LOUD = ("WARNING", "ERROR", "CRITICAL")

_CUT_OFF = "^fuse: reading device: Software caused connection abort$"
"""libfuse's own words for an end of the connection that meets a read under way.  No surprise where a mount ends."""


def eventually(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """The first true answer of `condition`, asked again and again; AssertionError when there is none in time."""
    deadline = time.monotonic() + patience
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what or condition}"
        time.sleep(0.005)
    return answer


@dataclass
class Daemon:
    """`tagfs mount store point *flags`; `wrapper` goes before it on the command line (strace …)."""

    store: Path
    point: Path
    flags: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    """Regular expressions of messages above INFO that are no surprise."""

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.log: list[dict[str, Any]] = []
        self.ready_lines: list[str] = []
        self._announced: queue.Queue[str] = queue.Queue()
        self._threads: list[threading.Thread] = []

    # -- life

    def start(self, wait: bool = True) -> "Daemon":
        """Start it, and return when it says that it shows its store (`wait` False: at once)."""
        with suppress(FileExistsError):
            self.point.mkdir()  # Without a look at what is there: it may be a dead mount.
        command = [sys.executable, "-m", "tagfs", "mount", str(self.store), str(self.point)]
        self.process = subprocess.Popen(
            [*self.wrapper, *command, "--log-format", "json", *self.flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **self.environment},
        )
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_log)]
        for thread in self._threads:
            thread.start()
        if wait:
            self.await_line(" shows ")
        return self

    def await_line(self, part: str) -> str:
        """The next line that it announces with `part` in it; AssertionError where it ends before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._announced.get(timeout=0.05)
            except queue.Empty:
                assert self.process is not None
                if self.process.poll() is not None and self._announced.empty():
                    self._join()
                    raise AssertionError(f"ended with {self.process.returncode}: {self.log}") from None
                assert time.monotonic() < deadline, f"no line with {part!r}: {self.log}"
                continue
            if part in line:
                return line

    @property
    def pid(self) -> int:
        """Of tagfs itself, below any wrapper."""
        assert self.process is not None
        if not self.wrapper:
            return self.process.pid
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(eventually(lambda: children.read_text().split(), "the wrapper starts tagfs")[0])

    def stop(self) -> int:
        """Ask it to end, as systemd would; -> its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it with SIGKILL: its mount stays behind, dead."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(timeout=PATIENCE)
        self._join()
        return code

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except (AssertionError, subprocess.TimeoutExpired, OSError, IndexError):
                self.process.kill()
                self.process.wait()
                self._join()
        self.unmount_rest()

    def unmount_rest(self) -> None:
        """Unmount what a killed daemon left at the point."""
        while (there := mountpoint.mounted_at(str(self.point))) is not None and there.fstype == mountpoint.FSTYPE:
            try:
                mountpoint.unmount(str(self.point), lazy=True)
            except MountRefused:
                return

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=PATIENCE)
        assert self.process is not None
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read_out(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            self.ready_lines.append(line.rstrip("\n"))
            self._announced.put(line.rstrip("\n"))

    def _read_log(self) -> None:
        assert self.process is not None and self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"level": "ERROR", "message": line.rstrip("\n")})

    # -- what it said

    def messages(self, level: str | None = None) -> list[str]:
        """The messages of its log so far, of one level or of all."""
        return [str(entry["message"]) for entry in self.log if level is None or entry["level"].upper() == level.upper()]

    def surprises(self) -> list[str]:
        """Messages above INFO that no expectation matches."""
        loud = [str(entry["message"]) for entry in self.log if entry["level"].upper() in _LOUD]
        expected = [_CUT_OFF, *self.expected]
        return [message for message in loud if not any(re.search(known, message) for known in expected)]

    def await_message(self, pattern: str) -> str:
        """The first message that matches; it is no surprise then."""
        self.expected.append(pattern)
        found = eventually(lambda: [m for m in self.messages() if re.search(pattern, m)], f"a message like {pattern!r}")
        return str(found[0])

    # -- what it shows

    def list_path(self, name: str, namespace: str = "team") -> Path:
        """The list of a repository in the mount."""
        return self.point / "imagerepository" / namespace / name / "tags.txt"

    def make(self, name: str, namespace: str = "team") -> Path:
        """The list of a repository in the mount, whose directories are there."""
        path = self.list_path(name, namespace)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stored(self, name: str, namespace: str = "team") -> list[Path]:
        """The files that the store has for a repository."""
        directory = self.store / "imagerepository" / namespace / name
        return sorted(directory.iterdir()) if directory.is_dir() else []
