"""Watching: what `tagfs watch` tells, of a store or of a mount, until it is interrupted.  Async.

Owns: how events look to a person; a mount that comes back, a store that is made ready again.
Does not know: how changes are found, how a mount tells them.
"""

import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import trio

from tagfs import events, sentinel
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk, closed_on_failure
from tagfs.errors import MountRefused, StoreRefused, StoreWaiting
from tagfs.events import Lines
from tagfs.following import Following, Told
from tagfs.holder import open_store
from tagfs.mountpoint import FSTYPE, Mounted, mounted_at, require_answer, showing
from tagfs.page import printable
from tagfs.past import Past
from tagfs.pipes import NAME
from tagfs.policy import Policy
from tagfs.whereabouts import elsewhere

LOOK_AGAIN = 0.5
"""Seconds between two looks at a mount that has gone, or a store that is not ready."""

TAGS_SHOWN = 10
"""Tags that came, and that went, which a line for a person names; JSON has all."""

Event = dict[str, Any]


class Output:
    """Where events go.

    Args:
        line: takes a line of what was asked for.
        note: takes a line about watching itself.
        is_json: whether events are told as they are.
        namespaces: the only ones told of, or None for all.
    """

    def __init__(
        self,
        line: Callable[[str], None],
        note: Callable[[str], None],
        is_json: bool,
        namespaces: frozenset[str] | None,
    ) -> None:
        self._line = line
        self.note = note
        self._is_json = is_json
        self.namespaces = namespaces

    def event(self, raw: bytes) -> None:
        event: Event = json.loads(raw)
        subject = event.get("subject")
        if subject is not None and self.namespaces is not None and subject.split("/")[0] not in self.namespaces:
            return
        if self._is_json:
            self._line(raw.decode().rstrip("\n"))
        elif event["type"] in (events.READY, events.WAITING):
            self.note(text(event))
        else:
            self._line(text(event))


def watch(path: str, output: Output, limit: int) -> None:
    """Tell every change of the store at `path`, or of the mount that it is or is in, until interrupted.

    Args:
        limit: plain bytes of a list.

    Raises:
        StoreRefused: it is neither.
        MountRefused: the mount tells nothing.
    """
    mounted = showing(path)
    if mounted is not None:
        require_answer(mounted)
        _watch_mount(mounted, output)
        return
    try:
        trio.run(_watch_store, path, output, limit)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise


# -- a mount


def _watch_mount(mounted: Mounted, output: Output) -> None:
    point, told = mounted.point, ""
    lines = Lines(mounted.source)
    had_ended = False
    while True:
        try:
            stream = open(f"{point}/{NAME.decode()}", "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            reason = _why(point, error)
        else:
            with stream:
                if had_ended:
                    # What happened meanwhile nobody has told.
                    output.event(lines.overflow(None))
                told, had_ended = "", True
                for line in stream:
                    if line.endswith(b"\n"):
                        output.event(line)
            reason = f"the mount at {point} has ended; waiting for it to come back"
        if reason != told:
            told = reason
            output.note(reason)
        time.sleep(LOOK_AGAIN)


def _why(point: str, error: OSError) -> str:
    """Why a mount cannot be listened to now; MountRefused where it never will be."""
    there = mounted_at(point)
    if there is None:
        return f"nothing is mounted at {point}; waiting for it to come back"
    if isinstance(error, FileNotFoundError) and there.fstype == FSTYPE:
        raise MountRefused(
            f"{point} tells no changes: its tagfs is older, or does not know where it is mounted; watch its store"
        ) from None
    return f"the mount at {point} cannot be listened to ({error.strerror}); trying again"


# -- a store


async def _watch_store(path: str, output: Output, limit: int) -> None:
    lines, past = Lines(path), Past()
    was_ready = False
    told = ""

    def ready(unwatched: int) -> None:
        nonlocal was_ready, told
        was_ready, told = True, ""
        output.event(lines.ready(len(past), unwatched))

    def tell(changes: Told) -> None:
        for key, difference in changes:
            output.event(lines.of_list(key, difference))

    while True:
        try:
            store = _opened(path, limit)
            try:
                gone = partial(elsewhere, store, path)
                await Following(store, past, tell, ready, was_ready, output.namespaces, elsewhere=gone).run()
            finally:
                store.close()
        except (StoreWaiting, StoreRefused) as error:
            if isinstance(error, StoreRefused) and not was_ready:
                raise
            if str(error) != told:
                told = str(error)
                output.event(lines.waiting(told))
        await trio.sleep(LOOK_AGAIN)


def _opened(path: str, limit: int) -> DirectoryStore:
    disk = Disk()
    root = open_store(disk, path)
    with closed_on_failure(disk, root):
        return DirectoryStore(disk, root, sentinel.require_ready(disk, root, path), Policy(list_limit=limit))


# -- for a person


def text(event: Event) -> str:
    """One line that says what an event does."""
    when = datetime.fromisoformat(event["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    data: Event = event["data"]
    match event["type"]:
        case events.READY:
            unwatched = data["unwatched"]
            told = f"watching {data['lists']} lists"
            if unwatched:
                told += f"; {unwatched} directories have no inotify watch and are looked at now and then"
        case events.WAITING:
            told = f"the store is not ready: {data['reason']}"
        case events.OVERFLOW:
            lost = "changes" if data["lost"] is None else f"{data['lost']} changes"
            told = f"{lost} were missed: read again what matters"
        case _:
            told = f"{event.get('subject')}  {_change(event['type'], data)}"
    return f"{when}  {printable(told)}"


def _change(type_: str, data: Event) -> str:
    if "error" in data:
        return f"cannot be read: {data['error']}"
    added, removed = data.get("added"), data.get("removed")
    told = "deleted" if type_ == events.DELETED else f"{data.get('count')} tags"
    if type_ == events.CREATED:
        told = f"created, {told}"
    if added is None or removed is None:
        return told if type_ == events.DELETED else f"{told}: which ones changed is not known, read the list"
    tags = [*_signed("+", added), *_signed("-", removed)]
    if tags:
        return f"{told}: {' '.join(tags)}"
    return f"{told}, in another order" if type_ == events.CHANGED else told


def _signed(sign: str, tags: list[str]) -> list[str]:
    shown = [sign + tag for tag in tags[:TAGS_SHOWN]]
    more = len(tags) - len(shown)
    return [*shown, f"{sign}{more} more"] if more else shown
