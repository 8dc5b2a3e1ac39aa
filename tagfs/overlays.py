"""Overlays: kustomizations that give objects another name or namespace than their file says.  Pure.

Owns: which files a kustomization reaches, and which renamings are so hidden from whoever reads only the files.
Does not know: the disk.  Paths are real ones, without links.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tagfs.documents import Node

KUSTOMIZATIONS = frozenset({"kustomization.yaml", "kustomization.yml", "Kustomization"})
"""The names that kustomize looks for."""

RENDER = "render them: kustomize build … | tagfs sweep STORE --inventory manifests:-"

_RENAMING = ("namespace", "namePrefix", "nameSuffix")
_FLUX_RENAMING = ("targetNamespace", "namePrefix", "nameSuffix")
_REFERENCES = ("resources", "bases", "components")


@dataclass(frozen=True, slots=True)
class Declared:
    """Where an object is declared: for a person, and its file."""

    place: str
    file: str


@dataclass(frozen=True, slots=True)
class Kustomization:
    """One that `renames` (each: where, and what it sets) what is at or below `roots`, or, of Flux, what is in a
    directory whose path ends in `tail` or has it inside."""

    directory: str | None
    renames: tuple[tuple[str, str], ...]
    roots: tuple[str, ...] = ()
    tail: str = ""

    @classmethod
    def of_flux(cls, node: Node, name: str) -> "Kustomization":
        """Of a Kustomization object of Flux; `./` may be the root of any other repository, so says nothing."""
        spec = node.field("spec") or Node(node.line, {})
        path = spec.field("path")
        text = path.value if path is not None and isinstance(path.value, str) else ""
        tail = posixpath.normpath(text or ".").strip("/")
        return cls(None, tuple(_renames(spec, name, _FLUX_RENAMING)), tail="" if tail in (".", "..") else tail)


def kustomization_of(document: Node, name: str, file: str, real: Callable[[str], str]) -> Kustomization:
    """The one that a kustomization.yaml holds.

    Args:
        name: what to call it.
        file: its real path.
        real: any path -> the real one.
    """
    directory = posixpath.dirname(file)
    references = (one.value for field in _REFERENCES for one in document.texts(field))
    roots = (real(posixpath.join(directory, one)) for one in references if isinstance(one, str))
    return Kustomization(directory, tuple(_renames(document, name, _RENAMING)), (directory, *roots))


def hidden_renamings(kustomizations: Iterable[Kustomization], declared: Iterable[Declared]) -> Iterator[str]:
    """A sentence for each kustomization that renames something declared."""
    found, objects = list(kustomizations), list(declared)
    by_directory: dict[str, list[Kustomization]] = {}
    for one in found:
        if one.directory is not None:
            by_directory.setdefault(one.directory, []).append(one)
    for one in found:
        if one.renames:
            reached = _reached(one, by_directory)
            hidden = [each.place for each in objects if _is_in(each.file, reached, one.tail)]
            if hidden:
                place, what = one.renames[0]
                more = f" and {len(hidden) - 1} others" if len(hidden) > 1 else ""
                yield f"{place}: sets {what} over {hidden[0]}{more}; {RENDER}"


def _renames(node: Node, name: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for field in fields:
        found = node.field(field)
        if found is not None and found.value:
            yield f"{name}:{found.line}", field


def _reached(start: Kustomization, by_directory: dict[str, list[Kustomization]]) -> set[str]:
    """The files and directories that a kustomization takes in, through others too."""
    reached: set[str] = set()
    waiting = list(start.roots)
    while waiting:
        root = waiting.pop()
        if root not in reached:
            reached.add(root)
            waiting += [below for one in by_directory.get(root, ()) for below in one.roots]
    return reached


def _is_in(file: str, reached: set[str], tail: str) -> bool:
    if tail and f"/{tail}/" in file:
        return True
    above = file
    while above not in reached:
        inner, above = above, posixpath.dirname(above)
        if above == inner:
            return False
    return True
