"""Sources: files of a directory tree or of a tar archive that hold tag lists.  Blocking.

Owns: which path is whose list; reading trees and archives, compressed ones and those that come through a pipe.
Does not know: stores, what a valid list is.

    [imagerepository/]<namespace>/<name>/tags.txt      as a mount shows it, or a store keeps it, also .gz and .zst
    <namespace>/<name>.txt                             one file for each
"""

import errno
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader

from tagfs.codec import CODECS, PLAIN, Codec, is_zstd, unpacked
from tagfs.errors import SettingRefused
from tagfs.names import BASE, LIST, RepositoryKey

LAYOUT = f"<namespace>/<name>/{LIST} or <namespace>/<name>.txt"

_CODEC_OF = {LIST + codec.suffix: codec for codec in CODECS}


class SourceCut(OSError):
    """An archive that is damaged, or ends too early; what came before is whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file; `within` is its path from where the layout begins.  `read` gives its bytes, once, before the next entry
    is asked for; None where it is no regular file."""

    path: str
    within: str
    size: int
    mtime_ns: int
    read: Callable[[], bytes] | None


def place_of(within: str) -> tuple[RepositoryKey, Codec] | None:
    """Whose list a path is, and how it is stored; None where it is none.

    Raises:
        NameRefused: it would be one, if its names were of the grammar.
    """
    parts = [part for part in within.split("/") if part not in ("", ".")]
    if BASE in parts:
        parts = parts[len(parts) - parts[::-1].index(BASE) :]
    if len(parts) == 3 and parts[2] in _CODEC_OF:
        return RepositoryKey(parts[0], parts[1]), _CODEC_OF[parts[2]]
    if len(parts) == 2 and parts[1].endswith(".txt"):
        return RepositoryKey(parts[0], parts[1].removesuffix(".txt")), PLAIN
    return None


def entries(source: str, stdin: BufferedReader | None = None) -> Iterator[Entry]:
    """Every file of a tree or an archive; `-` is an archive that comes through `stdin`, or the process's own.

    Raises:
        SettingRefused: it is neither.
        SourceCut: it is damaged; reading an entry may say so too.
    """
    if source == "-":
        with open(0, "rb", closefd=False) as own:
            yield from _archive(stdin or own, "standard input")
    elif os.path.isdir(source):
        yield from _tree(_base(source))
    else:
        with open(source, "rb") as stream:
            yield from _archive(stream, source)


def count(source: str) -> int | None:
    """How many files there are, about; None where only reading all of it would tell."""
    if not os.path.isdir(source):
        return None
    return sum(1 for _ in _tree(_base(source)))


def _base(source: str) -> str:
    base = os.path.join(source, BASE)
    return base if os.path.isdir(base) else source


def _tree(path: str, above: str = "", depth: int = 2) -> Iterator[Entry]:
    """The files at most `depth` directories below a path, no link followed, no hidden name."""
    with os.scandir(path) as found:
        below = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
    files = []
    for one in below:
        if one.is_dir(follow_symlinks=False):
            if depth:
                yield from _tree(one.path, f"{above}{one.name}/", depth - 1)
            continue
        status = one.stat(follow_symlinks=False)
        read = partial(_read, one.path) if stat.S_ISREG(status.st_mode) else None
        files.append(Entry(one.path, above + one.name, status.st_size, status.st_mtime_ns, read))
    yield from _winners(files)


def _winners(files: list[Entry]) -> list[Entry]:
    """The files of one directory without variants of a list that a newer one has replaced."""
    variants = [file for file in files if os.path.basename(file.path) in _CODEC_OF]
    ranks = [(file.mtime_ns, list(_CODEC_OF).index(os.path.basename(file.path))) for file in variants]
    best = variants[ranks.index(max(ranks))] if variants else None
    return [file for file in files if file is best or file not in variants]


def _read(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return file.read()


def _archive(stream: BufferedReader, name: str) -> Iterator[Entry]:
    is_packed = is_zstd(stream.peek(4))
    begun = False
    try:
        with tarfile.open(
            fileobj=unpacked(stream) if is_packed else stream, mode="r|" if is_packed else "r|*"
        ) as archive:
            for member in archive:
                begun = True
                if not member.isdir():
                    read = partial(_extract, archive, member, name) if member.isreg() else None
                    yield Entry(member.name, member.name, member.size, round(member.mtime * 1_000_000_000), read)
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every header to the end
    except (tarfile.TarError, EOFError, zlib.error) as error:
        if not begun:
            raise SettingRefused(f"{name} is neither a directory nor a tar archive ({error})") from error
        raise _cut(error, name) from error


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    try:
        file = archive.extractfile(member)
        assert file is not None
        with file:
            plain = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _cut(error, name) from error
    return plain


def _cut(error: Exception, name: str) -> SourceCut:
    return SourceCut(errno.EIO, f"the archive is damaged, or cut short ({error})", name)
