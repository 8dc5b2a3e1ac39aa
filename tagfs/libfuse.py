"""Libfuse: the channel through pyfuse3, for every kind of mount.  Async.

Owns: pyfuse3's life; how its end is told from an error.
Does not know: how a request is answered.
"""

import errno
import logging
import os

import pyfuse3

from tagfs.channel import Channel
from tagfs.errors import MountRefused
from tagfs.operations import Operations
from tagfs.settings import MountSettings
from tagfs.timings import Timings
from tagfs.tree import Tree


class Libfuse(Channel):
    """Answers with `operations`."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        logging.getLogger("pyfuse3").addFilter(_is_news)

    @property
    def tree(self) -> Tree | None:
        return self._operations.tree

    @tree.setter
    def tree(self, tree: Tree | None) -> None:
        self._operations.tree = tree

    @property
    def waiting(self) -> str | None:
        return self._operations.waiting

    @waiting.setter
    def waiting(self, waiting: str | None) -> None:
        self._operations.waiting = waiting

    def mount(self, settings: MountSettings) -> None:
        options = {"subtype=tagfs", f"fsname={_source(settings.store)}", "default_permissions"}
        if settings.read_only:
            options.add("ro")
        if settings.allow_other:
            options.add("allow_other")
        target = os.path.realpath(settings.mountpoint) if settings.device is None else f"/dev/fd/{settings.device}"
        try:
            pyfuse3.init(self._operations, target, options)
        except RuntimeError as error:
            raise MountRefused(
                f"{settings.mountpoint} cannot be mounted: run as root (or with fusermount3 installed, and"
                f" user_allow_other in /etc/fuse.conf for --allow-other) [{error}]"
            ) from error

    async def serve(self) -> None:
        try:
            await pyfuse3.main()
        except* OSError as group:
            # libfuse takes ENODEV alone for the end, but a read that is under way then can fail so.
            if (
                group.split(lambda error: isinstance(error, OSError) and error.errno == errno.ECONNABORTED)[1]
                is not None
            ):
                raise

    def terminate(self) -> None:
        pyfuse3.terminate()

    def close(self) -> None:
        pyfuse3.close(unmount=False)

    def forget_entry(self, directory: int, name: bytes) -> None:
        pyfuse3.invalidate_entry(directory, name)

    def forget_node(self, node: int) -> None:
        pyfuse3.invalidate_inode(node, attr_only=True)

    def measure(self, timings: Timings) -> None:
        timings.measure(self._operations)


def _source(store: str) -> str:
    """The store as mount tables show it; libfuse takes no comma, and pyfuse3 nothing but ASCII."""
    return store if store.isascii() and "," not in store and "\\" not in store else "tagfs"


def _is_news(record: logging.LogRecord) -> bool:
    """pyfuse3 logs an error for each answer that nobody waits for any more, because its client was killed."""
    return "fuse_reply" not in str(record.msg)
