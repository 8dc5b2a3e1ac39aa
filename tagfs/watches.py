"""Watches: watch descriptor <-> directory, in few bytes a repository.  Pure.

Owns: which directory a watch is of.
Does not know: inotify.
Invariant: a watch is of one directory; a directory that was moved, and is covered by its new path, has one watch by two
paths until the old one is removed.
"""

from collections.abc import Iterator

Path = tuple[str, ...] | None
"""Names below BASE; None is the store's own directory."""

_BLOCK = 256
"""Watches whose names are kept together: the kernel counts them up, so most of a block is there."""


class Watches:
    """The table of all watches.  The names that it keeps are those it is given, so that it shares them."""

    def __init__(self) -> None:
        # The store, BASE and namespaces: few.
        self._above: dict[Path, int] = {}
        self._path_above: dict[int, Path] = {}
        # Namespace -> repository -> watch.
        self._below: dict[str, dict[str, int]] = {}
        # Watch // _BLOCK -> namespace, repository by turns; None where there is no such watch.
        self._blocks: dict[int, list[str | None]] = {}

    def put(self, path: Path, watch: int) -> None:
        if path is None or len(path) < 2:
            self._drop_path_of(watch)
            self._above[path] = watch
            self._path_above[watch] = path
            return
        self._path_above.pop(watch, None)
        namespace, name = path
        self._below.setdefault(namespace, {})[name] = watch
        block = self._blocks.get(watch // _BLOCK)
        if block is None:
            block = self._blocks[watch // _BLOCK] = [None] * (2 * _BLOCK)
        place = 2 * (watch % _BLOCK)
        block[place : place + 2] = namespace, name

    def __contains__(self, path: Path) -> bool:
        if path is None or len(path) < 2:
            return path in self._above
        return path[1] in self._below.get(path[0], ())

    def __len__(self) -> int:
        """Directories that have a watch."""
        return len(self._above) + sum(map(len, self._below.values()))

    def path_of(self, watch: int) -> Path:
        """The directory of a watch; KeyError where it is no watch, or its directory was removed."""
        block = self._blocks.get(watch // _BLOCK)
        if block is not None:
            place = 2 * (watch % _BLOCK)
            namespace, name = block[place : place + 2]
            if namespace is not None and name is not None:
                return namespace, name
        return self._path_above[watch]

    def below(self, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The directories that have a watch, at and below a path; the table must not change meanwhile."""
        if len(path) == 2:
            if path in self:
                yield path
            return
        yield from (known for known in self._above if known is not None and known[: len(path)] == path)
        for namespace in path or self._below:
            for name in self._below.get(namespace, ()):
                yield namespace, name

    def remove(self, path: Path) -> int | None:
        """Forget a directory; -> its watch, None where it has none, or another path has it by now."""
        if path is None or len(path) < 2:
            watch = self._above.pop(path, None)
        else:
            names = self._below.get(path[0], {})
            watch = names.pop(path[1], None)
            if watch is not None and not names:
                del self._below[path[0]]
        if watch is None:
            return None
        try:
            if self.path_of(watch) != path:
                return None
        except KeyError:
            return None
        self._drop_path_of(watch)
        return watch

    def _drop_path_of(self, watch: int) -> None:
        self._path_above.pop(watch, None)
        block = self._blocks.get(watch // _BLOCK)
        if block is not None:
            place = 2 * (watch % _BLOCK)
            block[place : place + 2] = None, None
            if not any(block):
                del self._blocks[watch // _BLOCK]
