"""Channel: how a mount speaks with the kernel; the interface, stated once.  Async.

Owns: what a channel promises.
Does not know: which ones there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from tagfs.settings import MountSettings
from tagfs.timings import Timings
from tagfs.tree import Tree


class Channel(ABC):
    """Answers the kernel from a tree.

    `tree` is None until the store is ready for the first time; `waiting` says why it is not ready now.  Meanwhile
    names are answered with EAGAIN, and what is open stays readable.
    """

    tree: Tree | None
    waiting: str | None

    @abstractmethod
    def mount(self, settings: MountSettings) -> None:
        """Mount at the mount point, or take the device that the settings name.  Programs wait for answers from then on.
        MountRefused: nothing is mounted."""

    @abstractmethod
    async def serve(self) -> None:
        """Answer until it is unmounted, its connection cut, or `terminate` called."""

    async def attend(self, descriptor: int, look: Callable[[], bool]) -> None:
        """Call `look` now, and each time that `descriptor` is readable, until it returns False."""
        while look():
            await trio.lowlevel.wait_readable(descriptor)

    @abstractmethod
    def terminate(self) -> None:
        """Let `serve` return."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the device, when nothing is asked or told any more."""

    @abstractmethod
    def forget_entry(self, directory: int, name: bytes) -> None:
        """Tell the kernel to forget a name; blocks.  FileNotFoundError where it does not know it."""

    @abstractmethod
    def forget_node(self, node: int) -> None:
        """Tell the kernel to forget the attributes of a node, and of a directory its listing; as `forget_entry`."""

    @abstractmethod
    def measure(self, timings: Timings) -> None:
        """Time each request from now on."""
