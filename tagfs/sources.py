"""Sources: files of a directory tree or of a tar archive that hold tag lists.  Blocking.

Owns: which path is whose list; reading trees and archives, compressed ones and those that come through a pipe.
Does not know: stores, what a valid list is.

    [imagerepository/]<namespace>/<name>/tags.txt      as a mount shows it, or a store keeps it, also .gz and .zst
    <namespace>/<name>.txt                             one file for each
"""

import errno
import gzip
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from typing import IO, Self, cast

from tagfs.codec import CODECS, PLAIN, Codec, is_zstd, unpacked
from tagfs.errors import SettingRefused
from tagfs.names import BASE, LIST, RepositoryKey

LAYOUT = f"<namespace>/<name>/{LIST} or <namespace>/<name>.txt"

_CODEC_OF = {LIST + codec.suffix: codec for codec in CODECS}

HEADERS_LIMIT = 1 << 20
"""Bytes of a member that says something of the next one: tarfile reads all of it into memory."""

_LATEST_NS = 1 << 62
"""Some time in 2116: what an archive says of later days no file system keeps."""

_SPEAKING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_ENDS = 10
"""How often tarfile may find the end of an archive that is whole: it looks for two empty blocks, block by block."""

_GZIP = b"\x1f\x8b"

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError)
"""What is raised where an archive is damaged, or none; some of it by accident, in tarfile."""


PASSED_OVER = (FileNotFoundError, PermissionError)
"""What concerns one file or directory, and says nothing of the others."""


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


class _Member(tarfile.TarInfo):
    """A member whose size can be true, with a whole header: tarfile takes a cut between two for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no empty block at its end")
        return super().frombuf(buf, encoding, errors)

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _SPEAKING and self.size > HEADERS_LIMIT):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # where tarfile is meant to be extended
        if member.size < 0:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        return member


class _Ending:
    """A stream that has an end: tarfile would read on, for ever, for a member that claims to be longer."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._ends = 0

    def read(self, size: int) -> bytes:
        part = self._stream.read(size)
        self._ends += not part
        if self._ends > _ENDS:
            raise EOFError("unexpected end of data")
        return part


def place_of(within: str) -> tuple[RepositoryKey, Codec] | None:
    """Whose list a path is, and how it is stored; None where it is none.

    Raises:
        NameRefused: it would be one, if its names were of the grammar.
    """
    parts = _parts(within)
    if _is_variant(parts):
        return RepositoryKey(parts[0], parts[1]), _CODEC_OF[parts[2]]
    if len(parts) == 2 and parts[1].endswith(".txt"):
        return RepositoryKey(parts[0], parts[1].removesuffix(".txt")), PLAIN
    return None


def _parts(within: str) -> list[str]:
    parts = [part for part in within.split("/") if part not in ("", ".")]
    return parts[len(parts) - parts[::-1].index(BASE) :] if BASE in parts else parts


def _is_variant(parts: list[str]) -> bool:
    """Whether only a list can be there: a directory at <namespace>/<name>.txt may be a repository of that name."""
    return len(parts) == 3 and parts[2] in _CODEC_OF


def entries(
    source: str, stdin: BufferedReader | None = None, left: Callable[[str, OSError], None] = lambda path, error: None
) -> Iterator[Entry]:
    """Every file of a tree or an archive, and directories in the place of a list; `-` is an archive that comes through
    `stdin`, or the process's own.

    Args:
        left: called with what of a tree may not be entered or is gone; the others follow.

    Raises:
        SettingRefused: it is neither.
        SourceCut: it is damaged; reading an entry may say so too.
    """
    if source == "-":
        with open(0, "rb", closefd=False) as own:
            yield from _archive(stdin or own, "standard input")
    elif os.path.isdir(source):
        yield from _tree(_base(source), left)
    else:
        with open(source, "rb") as stream:
            yield from _archive(stream, source)


def count(source: str) -> int | None:
    """How many files there are, about; None where only reading all of it would tell."""
    if not os.path.isdir(source):
        return None
    return sum(1 for _ in entries(source))


def _base(source: str) -> str:
    base = os.path.join(source, BASE)
    return base if os.path.isdir(base) else source


def _tree(path: str, left: Callable[[str, OSError], None], above: str = "", depth: int = 2) -> Iterator[Entry]:
    """The files at most `depth` directories below a path, no link followed, no hidden name."""
    try:
        with os.scandir(path) as found:
            below = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
    except PASSED_OVER as error:
        left(path, error)
        return
    files = []
    for one in below:
        if one.is_dir(follow_symlinks=False):
            if _is_variant(_parts(above + one.name)):
                yield Entry(one.path, above + one.name, 0, 0, None)
            elif depth:
                yield from _tree(one.path, left, f"{above}{one.name}/", depth - 1)
            continue
        try:
            status = one.stat(follow_symlinks=False)
        except PASSED_OVER as error:
            left(one.path, error)
            continue
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
    begun = False
    try:
        ending = cast(IO[bytes], _Ending(_unpacked(stream)))
        with tarfile.open(fileobj=ending, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                begun = True
                if not member.isdir() or _is_variant(_parts(member.name)):
                    read = partial(_extract, archive, member, name) if member.isreg() else None
                    yield Entry(member.name, member.name, member.size, _mtime_ns(member), read)
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every header to the end
        while ending.read(1 << 16):
            pass  # Check sums come last; and whoever writes the pipe is not cut off.
    except _DAMAGE as error:
        if not begun and not isinstance(error, EOFError):
            raise SettingRefused(f"{name} is neither a directory nor a tar archive ({error})") from error
        raise _cut(error, name) from error


def _unpacked(stream: BufferedReader) -> IO[bytes]:
    """Without zstd, which tarfile does not know, and gzip, whose check sum it does not look at."""
    begin = stream.peek(4)
    if is_zstd(begin):
        return unpacked(stream)
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if begin.startswith(_GZIP) else stream


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """When a member was changed; 1970 where that is no time."""
    return round(max(0, min(member.mtime, _LATEST_NS / 1e9)) * 1_000_000_000) if member.mtime == member.mtime else 0


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    try:
        file = archive.extractfile(member)
        assert file is not None
        with file:
            plain = file.read()
    except _DAMAGE as error:
        raise _cut(error, name) from error
    return plain


def _cut(error: Exception, name: str) -> SourceCut:
    return SourceCut(errno.EIO, f"the archive is damaged, or cut short ({error})", name)
