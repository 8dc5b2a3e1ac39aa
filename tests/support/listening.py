"""A program that listens to the changes of a mount, as a shell script with `cat` does."""

import ctypes
import json
import os
import queue
import struct
import threading
from pathlib import Path
from typing import Any

from tagfs.events import PREFIX
from tagfs.names import RepositoryKey
from tests.support.beneath import put
from tests.support.daemon import PATIENCE, Daemon

Event = dict[str, Any]


class Listener:
    """Reads lines of a file to its end, in a thread; `None` from `next` is that end."""

    def __init__(self, path: Path) -> None:
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(path,), daemon=True)
        self._thread.start()

    def _read(self, path: Path) -> None:
        with open(path, "rb") as lines:
            for line in lines:
                # At the end of a mount a line may be cut off.
                if line.endswith(b"\n"):
                    self._events.put(json.loads(line))
        self._events.put(None)

    def next(self) -> Event | None:
        """The next event; queue.Empty where none comes."""
        return self._events.get(timeout=PATIENCE)

    def expect(self, type_: str) -> Event:
        """The next event, which is of this type."""
        event = self.next()
        assert event is not None, "the end came first"
        assert event["type"] == PREFIX + type_, event
        return event

    def until(self, type_: str) -> Event:
        """The first event of this type."""
        while (event := self.next()) is not None:
            if event["type"] == PREFIX + type_:
                return event
        raise AssertionError(f"the end came before {type_}")


class Opened:
    """Watches, as any program may, which names are opened in a directory."""

    _IN_OPEN = 0x20

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._inotify, os.fsencode(directory), self._IN_OPEN) >= 0

    def names(self) -> list[str]:
        """Those until now; watches no more."""
        raw = os.read(self._inotify, 1 << 16)
        os.close(self._inotify)
        found, position = [], 0
        while position < len(raw):
            length = struct.unpack_from("iIII", raw, position)[3]
            found.append(os.fsdecode(raw[position + 16 : position + 16 + length].rstrip(b"\0")))
            position += 16 + length
        return found


def listen(daemon: Daemon) -> Listener:
    """A listener that is told everything from now on."""
    listener = Listener(daemon.point / ".changes")
    listener.expect("ready")
    return listener


def write(daemon: Daemon, key: RepositoryKey, plain: bytes) -> None:
    """Write a list where that mount takes it: through it, or beneath."""
    if "--read-only" in daemon.flags:
        put(daemon.store, key, plain)
    else:
        daemon.make(key.name, key.namespace).write_bytes(plain)


def watches(pid: int) -> int:
    """The directories that a process watches by inotify."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            count += Path(f"/proc/{pid}/fdinfo/{name}").read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count
