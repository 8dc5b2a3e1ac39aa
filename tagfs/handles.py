"""Handles: what programs have open, and the steps that it leads to.  Pure.

Owns: what a handle refers to; what a step is.
Does not know: node ids, the store's files, FUSE.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tagfs.buffers import Scratch
from tagfs.durability import Work
from tagfs.inodes import DirectoryNode, ListNode
from tagfs.names import RepositoryKey
from tagfs.writer import Writer

HEAVY = 1 << 20
"""Bytes of a list from which judging and encoding it would keep the loop from answering others: about 4 ms."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that blocks, for one key: `run` touches the store alone and may run in a thread, then `settle` takes
    its result into the tables of the tree, or `fail` its error.  `size` is the bytes that `run` has to work through.
    `work`, where there is one, does the same and says where it blocks."""

    key: RepositoryKey
    run: Callable[[], Any]
    settle: Callable[[Any], None]
    fail: Callable[[BaseException], None] = field(default=lambda error: None)
    size: int = 0
    work: Callable[[], Work[Any]] | None = None

    def ending(self, settle: Callable[[Any], None], fail: Callable[[BaseException], None]) -> "Step":
        """The same step, ended otherwise."""
        return Step(self.key, self.run, settle, fail, self.size, self.work)


@dataclass(slots=True)
class ReadHandle:
    """A reader: one version to the end; `node` shares its snapshot among its readers."""

    node: ListNode | None
    content: Callable[[], bytes]


@dataclass(slots=True)
class WriteHandle:
    """A writer; `is_pinned`: its base is the snapshot of `node` that the tree shares."""

    node: ListNode
    writer: Writer
    is_pinned: bool


@dataclass(slots=True)
class ScratchHandle:
    scratch: Scratch


@dataclass(slots=True)
class DirectoryHandle:
    """`names` is what the directory showed when it was last read from its start."""

    node: DirectoryNode
    names: list[bytes] = field(default_factory=list)


Handle = ReadHandle | WriteHandle | ScratchHandle | DirectoryHandle
