"""Walk: every repository key of a store in whatever state it is, and every variant read and judged.  Blocking.

Owns: going through a store that may be damaged, foreign in parts, or changing meanwhile; what cannot be read of a file.
Does not know: what is done about what is found.
Invariant: holds one directory's names and one list in memory at a time; what vanishes meanwhile is passed over.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from tagfs import variants
from tagfs.codec import HEADER_SIZE, TRAILER_SIZE, Codec, Undecodable, exceeds, most_stored
from tagfs.disk import Disk
from tagfs.errors import ListTooLarge
from tagfs.names import BASE, RepositoryKey, is_namespace, is_repository
from tagfs.variants import Variant


class Visitor:
    """What a walk meets beside keys; each method may be overridden."""

    def directory(self, path: str, descriptor: int) -> None:
        """A directory of the layout, open."""

    def foreign(self, path: str, directory: int, is_dir: bool) -> None:
        """An entry of `directory` that is no namespace and no repository."""

    def fault(self, path: str, error: OSError) -> None:
        """A directory that cannot be read."""


def walk(disk: Disk, root: int, visitor: Visitor) -> Generator[tuple[RepositoryKey, int], None, None]:
    """(key, descriptor of its directory, open until the next one) of every key in the store, in order."""
    with _opened(disk, root, BASE, BASE, visitor) as base:
        for namespace in _good_names(disk, base, BASE, visitor, is_namespace):
            path = f"{BASE}/{namespace}"
            with _opened(disk, base, namespace, path, visitor) as above:
                for name in _good_names(disk, above, path, visitor, is_repository):
                    with _opened(disk, above, name, f"{path}/{name}", visitor) as directory:
                        if directory is not None:
                            yield RepositoryKey(namespace, name), directory


@contextmanager
def opened_key(disk: Disk, root: int, key: RepositoryKey) -> Iterator[int]:
    """The descriptor of a key's directory, reached without following a link; OSError where it cannot be."""
    descriptors: list[int] = []
    try:
        for name in (BASE, key.namespace, key.name):
            descriptors.append(disk.open_dir(descriptors[-1] if descriptors else root, name))
        yield descriptors[-1]
    finally:
        for descriptor in descriptors:
            disk.close(descriptor)


def unsettled(
    disk: Disk, root: int, codecs: tuple[Codec, ...], met: dict[RepositoryKey, list[Variant]]
) -> Iterator[tuple[RepositoryKey, list[Variant]]]:
    """Of the keys that were met with more than one variant those that still have them all: no writer was about to
    delete what it had replaced."""
    for key, before in met.items():
        try:
            with opened_key(disk, root, key) as directory:
                after = variants.find(disk, directory, codecs)
        except OSError:
            continue
        if [variant.identity for variant in after] == [variant.identity for variant in before]:
            yield key, before


def _good_names(
    disk: Disk, directory: int | None, path: str, visitor: Visitor, is_good: Callable[[str], bool]
) -> list[str]:
    """The directories in `directory` that have a place in the layout; the visitor is told of all else."""
    if directory is None:
        return []
    try:
        entries = sorted(disk.names(directory))
    except OSError as error:
        visitor.fault(path, error)
        return []
    good = []
    for name, is_dir in entries:
        if is_dir and is_good(name):
            good.append(name)
        else:
            visitor.foreign(f"{path}/{name}", directory, is_dir)
    return good


@contextmanager
def _opened(disk: Disk, above: int | None, name: str, path: str, visitor: Visitor) -> Iterator[int | None]:
    if above is None:
        yield None
        return
    try:
        descriptor = disk.open_dir(above, name)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        visitor.fault(path, error)
        yield None
        return
    try:
        visitor.directory(path, descriptor)
        yield descriptor
    finally:
        disk.close(descriptor)


def read_variant(disk: Disk, directory: int, variant: Variant, limit: int) -> bytes:
    """The plain bytes of a variant.

    Raises:
        Undecodable: the file is not what it promises; no later try will make it better.
        ListTooLarge: it promises more than `limit` bytes, and may be sound.
        OSError: it could not be read; the file itself may be sound.
    """
    file = disk.open_file(directory, variant.name)
    try:
        stored_size = disk.stat_open(file).st_size
        header = disk.read(file, HEADER_SIZE)
        trailer = disk.read(file, TRAILER_SIZE, max(0, stored_size - TRAILER_SIZE))
        promised = variant.codec.plain_size(header, trailer, stored_size)
        if promised > limit:
            if stored_size > limit or exceeds(variant.codec, disk.read(file, stored_size), limit):
                raise ListTooLarge(f"{promised} bytes, --max-list-size allows {limit}")
            raise Undecodable(f"it promises {promised} bytes and does not hold them")
        if stored_size > most_stored(limit):
            raise Undecodable(f"{stored_size} bytes are stored, and it promises only {promised}")
        plain = variant.codec.decode(disk.read(file, stored_size), limit)
    finally:
        disk.close(file)
    if len(plain) != promised:
        raise Undecodable(f"it promises {promised} bytes and holds {len(plain)}")
    return plain


def is_still(disk: Disk, directory: int, variant: Variant) -> bool:
    """Whether the file is the one that was found: Flux takes no lock, so it may write beside a repair."""
    try:
        status = disk.stat(directory, variant.name)
    except FileNotFoundError:
        return False
    return Variant(variant.codec, variant.name, status).identity == variant.identity


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Have an error of the disk name `path`, where it names nothing or what only a directory's descriptor leads to."""
    try:
        yield
    except OSError as error:
        if not (isinstance(error.filename, str) and os.path.isabs(error.filename)):
            error.filename = path
        raise


def sentence(error: Exception) -> str:
    """What an error says to a person, without the number of an OSError."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
