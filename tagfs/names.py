"""Names: which namespaces, repositories and files there can be.  Pure.

Owns: `RepositoryKey`, the grammar of names, the names of all files in a store.
Does not know: I/O.
"""

import re
from typing import NamedTuple

from tagfs.errors import NameRefused

BASE = "imagerepository"
"""The directory above all namespaces (the lower-cased kind, as Flux's artifact storage has it)."""

LIST = "tags.txt"
"""The name under which a tag list is shown, and the plain variant's name in the store."""

VERSION_SENTINEL = ".storage-version"
WIPE_SENTINEL = ".storage-wipe-in-progress"
STAGE_DIRECTORY = ".tagfs-stage"
"""Where lists are written before they are renamed into place; whatever a new writer finds there is left over."""

SWEEP_LEDGER = ".tagfs-sweep"
"""What a sweep must know of those before it: what was deleted lately, and whether a mass deletion is held."""

HIDDEN_PREFIX = ".tagfs-hidden."
"""Before the name of a variant whose list a program renamed away; put back unless a successor is committed."""

QUARANTINE_DIRECTORY = ".tagfs-quarantine"
LOST_AND_FOUND = "lost+found"

NAMESPACE_LIMIT = 63
"""Bytes: RFC 1123, section 2.1, as Kubernetes applies it to labels."""

REPOSITORY_LIMIT = 253
"""Bytes: RFC 1123 subdomain, as Kubernetes applies it to object names."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_FLUX_TEMPORARY = re.compile(r"tags\.txt(?:\.gz)?[0-9]+", re.ASCII)


class _Parts(NamedTuple):
    namespace: str
    name: str


class RepositoryKey(_Parts):
    """One ImageRepository: the key of a tag list.

    Raises:
        NameRefused: a part is not of its grammar.
    """

    __slots__ = ()

    def __new__(cls, namespace: str, name: str) -> "RepositoryKey":
        check_namespace(namespace)
        check_repository(name)
        return super().__new__(cls, namespace, name)

    @classmethod
    def known(cls, namespace: str, name: str) -> "RepositoryKey":
        """The key of names that were checked before."""
        return tuple.__new__(cls, (namespace, name))

    @classmethod
    def parse(cls, text: str) -> "RepositoryKey":
        """`<namespace>/<name>` -> key."""
        namespace, slash, name = text.partition("/")
        if not slash:
            raise NameRefused(f"{text!r} is not <namespace>/<name>")
        return cls(namespace, name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def directory(self) -> str:
        """The directory of the key, relative to the store or to the mount point."""
        return f"{BASE}/{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """The list of the key as the mount shows it, relative to the mount point."""
        return f"{self.directory}/{LIST}"


def check_namespace(name: str) -> None:
    """Raise NameRefused unless `name` is an RFC 1123 label of at most 63 characters."""
    if not is_namespace(name):
        raise NameRefused(f"{name!r} is no namespace: lower-case letters, digits and '-', at most 63")


def check_repository(name: str) -> None:
    """Raise NameRefused unless `name` is an RFC 1123 subdomain of at most 253 characters."""
    if not is_repository(name):
        raise NameRefused(f"{name!r} is no repository: lower-case letters, digits, '-' and '.', at most 253")


def is_namespace(name: str) -> bool:
    return len(name) <= NAMESPACE_LIMIT and _LABEL.fullmatch(name) is not None


def is_repository(name: str) -> bool:
    return len(name) <= REPOSITORY_LIMIT and _SUBDOMAIN.fullmatch(name) is not None


def is_flux_temporary(name: str) -> bool:
    """Whether `name` is one that Flux writes before it renames (Go's `os.CreateTemp`: the name and digits)."""
    return _FLUX_TEMPORARY.fullmatch(name) is not None
