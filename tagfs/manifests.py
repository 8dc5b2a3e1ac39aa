"""Manifests: trees of YAML and JSON files -> the image repositories that they declare.  Blocking.

Owns: which files count; what an ImageRepository is; whatever a tree alone cannot tell, told with its file and line.
Does not know: parsing, stores, clusters.
Invariant: all that is declared, or an error.  A tree that changes meanwhile is an error too: what moves from one
directory to another could be in neither when each is read.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tagfs.documents import Node, documents
from tagfs.errors import InventoryIncomplete, ManifestInvalid, ManifestsChanging, NameRefused
from tagfs.names import RepositoryKey
from tagfs.overlays import KUSTOMIZATIONS, Declared, Kustomization, hidden_renamings, kustomization_of
from tagfs.patterns import Patterns

GROUP = "image.toolkit.fluxcd.io"
FLUX_KUSTOMIZATIONS = "kustomize.toolkit.fluxcd.io"

SETTLED = 1.0
"""Seconds without a change after which a tree is taken for whole: a checkout of another commit writes file by file."""

PROBLEMS_SHOWN = 5
ENTRIES_LIMIT = 1_000_000
"""Files and directories: links can make a tree of any size out of a few."""

SIZE_LIMIT = 256 << 20
"""Bytes of one file."""

_ENDINGS = (".yaml", ".yml", ".json")
_TEMPLATES = ("${", "$(", "{{", "<%")

_Directory = tuple[str, str, tuple[tuple[int, int], ...]]
"""A path, the same relative to its tree with a `/` behind it, and the identities of it and of those above it."""


@dataclass(slots=True)
class Found:
    """What is declared: each key and where, and those that are declared more than once."""

    keys: dict[RepositoryKey, str] = field(default_factory=dict)
    repeated: dict[RepositoryKey, tuple[str, str]] = field(default_factory=dict)


class Manifests:
    """The trees, or single files, at `paths`.

    Args:
        include: only files that one of these patterns matches, relative to their tree; none: all.
        ignore: no file and no directory that one of these matches.
        text: gives the text of one more source: rendered manifests; called once.
        settled: seconds for which nothing may have changed.
    """

    def __init__(
        self,
        paths: Sequence[str],
        include: Iterable[str] = (),
        ignore: Iterable[str] = (),
        text: Callable[[], bytes] | None = None,
        settled: float = SETTLED,
    ) -> None:
        self._paths = tuple(paths)
        self._include = Patterns(include)
        self._ignore = Patterns(ignore)
        self._text = text
        self._given: bytes | None = None
        self._settled = settled

    def read(self) -> Found:
        """All that is declared.

        Raises:
            ManifestsChanging: not now.
            InventoryIncomplete: something cannot be told; the sentence names the files and lines.
        """
        reading = _Reading(self._include, self._ignore)
        if self._text is not None:
            if self._given is None:
                self._given = self._text()
            reading.take("standard input", self._given, None)
        for path in self._paths:
            reading.walk(path)
        reading.problems += hidden_renamings(reading.kustomizations, reading.declared)
        reading.require_unchanged(self._settled)
        if reading.problems:
            more = len(reading.problems) - PROBLEMS_SHOWN
            raise InventoryIncomplete(
                "; ".join(reading.problems[:PROBLEMS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
            )
        return reading.found


class _Reading:
    def __init__(self, include: Patterns, ignore: Patterns) -> None:
        self._include = include
        self._ignore = ignore
        self._began = time.time()
        # INVARIANT: every file and directory that was looked at, as it was before it was read.
        self._seen: dict[str, tuple[int, ...]] = {}
        self._youngest = 0.0
        self.found = Found()
        self.declared: list[Declared] = []
        self.kustomizations: list[Kustomization] = []
        self.problems: list[str] = []

    # -- files

    def walk(self, root: str) -> None:
        try:
            status = self._look(root)
        except OSError as error:
            self._fail(root, error)
            return
        if not stat.S_ISDIR(status.st_mode):
            self._file(root)
            return
        waiting: list[_Directory] = [(root, "", ((status.st_dev, status.st_ino),))]
        while waiting:
            waiting += reversed(list(self._directory(*waiting.pop())))

    def _directory(self, path: str, relative: str, above: tuple[tuple[int, int], ...]) -> Iterator["_Directory"]:
        """Read the files of a directory; -> the directories in it."""
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            self._fail(path, error)
            return
        for name in names:
            inner, inner_relative = os.path.join(path, name), f"{relative}{name}"
            if name == ".git" or self._ignore.match(inner_relative):
                continue
            try:
                status = self._look(inner)
            except OSError as error:
                self._fail(inner, error)
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = status.st_dev, status.st_ino
                if identity in above:
                    self.problems.append(f"{inner}: a link to a directory that it is in, so the tree has no end")
                else:
                    yield inner, f"{inner_relative}/", (*above, identity)
            elif name in KUSTOMIZATIONS or (
                name.endswith(_ENDINGS) and (not self._include or self._include.match(inner_relative))
            ):
                self._file(inner)

    def _look(self, path: str) -> os.stat_result:
        status = os.stat(path)
        self._seen[path] = _state(status)
        if len(self._seen) > ENTRIES_LIMIT:
            raise InventoryIncomplete(f"{path}: there are more than {ENTRIES_LIMIT} files and directories before it")
        for changed in (status.st_mtime, status.st_ctime):
            if changed <= self._began:  # What is from the future tells nothing.
                self._youngest = max(self._youngest, changed)
        return status

    def _file(self, path: str) -> None:
        try:
            # O_NONBLOCK: opening a FIFO must not wait for its writer.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    self.problems.append(f"{path}: no regular file")
                    return
                if status.st_size > SIZE_LIMIT:
                    self.problems.append(f"{path}: larger than {SIZE_LIMIT >> 20} MiB")
                    return
                content = file.read()
        except OSError as error:
            self._fail(path, error)
            return
        self.take(path, content, os.path.realpath(path))

    def _fail(self, path: str, error: OSError) -> None:
        self.problems.append(f"{path}: {error.strerror or error}")

    def require_unchanged(self, settled: float) -> None:
        """ManifestsChanging where anything that was looked at is another now, or was until a moment ago."""
        for path, state in self._seen.items():
            try:
                now = _state(os.stat(path))
            except OSError:
                now = ()
            if now != state:
                raise ManifestsChanging(f"{path} changed while it was read")
        if self._began - self._youngest < settled:
            raise ManifestsChanging("the manifests were changed a moment ago, and may be changed further")

    # -- what is in them

    def take(self, name: str, content: bytes, file: str | None) -> None:
        """Take what a file declares; `file` is its real path, None for what is no file."""
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.problems.append(f"{name}:{line}: no UTF-8")
            return
        is_json = name.endswith(".json") or (file is None and text.lstrip()[:1] in ("{", "["))
        try:
            for document in documents(text, is_json):
                if file is not None and os.path.basename(name) in KUSTOMIZATIONS:
                    self.kustomizations.append(kustomization_of(document, name, file, os.path.realpath))
                else:
                    self._objects(document, name, file)
        except ManifestInvalid as error:
            self.problems.append(f"{name}:{error.line}: {error.reason}")

    def _objects(self, document: Node, name: str, file: str | None) -> None:
        for node in _flat(document):
            kind = node.field("kind")
            if kind is None:
                continue
            try:
                if _text(kind, "kind") == "ImageRepository" and _group(node, kind) == GROUP:
                    self._declare(_key(node), f"{name}:{node.line}", file)
                elif kind.value == "Kustomization" and file is not None and _group(node, kind) == FLUX_KUSTOMIZATIONS:
                    self.kustomizations.append(Kustomization.of_flux(node, name))
            except ManifestInvalid as error:
                self.problems.append(f"{name}:{error.line}: {error.reason}")

    def _declare(self, key: RepositoryKey, place: str, file: str | None) -> None:
        if file is not None:
            self.declared.append(Declared(place, file))
        first = self.found.keys.setdefault(key, place)
        if first != place:
            self.found.repeated.setdefault(key, (first, place))


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _flat(document: Node) -> Iterator[Node]:
    """The objects of a document: itself, or what is in it where it is a list of objects."""
    waiting = [document]
    seen: set[int] = set()  # An alias may name the same list many times.
    while waiting:
        node = waiting.pop()
        kind, items = node.field("kind"), node.field("items")
        if kind is None or kind.value not in ("List", "ImageRepositoryList") or items is None:
            yield node
        elif not isinstance(items.value, list):
            raise ManifestInvalid(items.line, "the items of a list are no sequence")
        elif id(items) not in seen:
            seen.add(id(items))
            waiting += reversed(items.value)


def _group(node: Node, kind: Node) -> str:
    version = node.field("apiVersion")
    if version is None:
        raise ManifestInvalid(kind.line, f"a {kind.value} without an apiVersion")
    return _text(version, "apiVersion").partition("/")[0]


def _key(node: Node) -> RepositoryKey:
    metadata = node.field("metadata") or Node(node.line, {})
    parts = []
    for name in ("namespace", "name"):
        found = metadata.field(name)
        if found is None:
            raise ManifestInvalid(metadata.line, f"an ImageRepository without a {name}: only rendering tells it")
        parts.append(_text(found, name))
    try:
        return RepositoryKey(*parts)
    except NameRefused as error:
        raise ManifestInvalid(metadata.line, str(error)) from None


def _text(node: Node, what: str) -> str:
    """The text of a scalar that says what exists; ManifestInvalid where only rendering would tell it."""
    if not isinstance(node.value, str) or any(template in node.value for template in _TEMPLATES):
        shown = f" {node.value!r}" if isinstance(node.value, str) else ""
        raise ManifestInvalid(node.line, f"the {what}{shown} is a template: only rendering tells what it will be")
    if not node.is_string:
        raise ManifestInvalid(node.line, f"the {what} {node.value} is no string")
    return node.value
