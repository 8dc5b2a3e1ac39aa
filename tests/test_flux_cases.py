"""The cases that Flux has published for its file system storage, by their results, on stores that both can read."""

import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import taglist
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import ListMissing, RepositoryMissing
from tagfs.names import RepositoryKey
from tests.support.places import fast_directory
from tests.support.stores import KEY, files_of, gunzip, open_store, policy_of, write_natively

KIB = 1024
HOUR_NS = 3600 * 10**9
NOW = 1_700_000_000 * 10**9


def tags_of_size(size: int, first: str = "v1") -> bytes:
    """A valid list of exactly `size` bytes."""
    plain = b""
    number = 0
    while size - len(plain) > 40:
        plain += f"{first}.{number}.0\n".encode()
        number += 1
    plain += b"x" * (size - len(plain) - 1) + b"\n"
    taglist.validate(plain)
    assert len(plain) == size
    return plain


LIST_1875 = tags_of_size(1875)


@pytest.fixture
def path() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def opened(path: Path, kib: float, format_: int = 2) -> DirectoryStore:
    return open_store(Disk(), str(path), format_, policy_of(format_, int(kib * KIB)))


COMPRESSED = {2: "tags.txt.gz", 3: "tags.txt.zst"}


@pytest.mark.parametrize("format_", [2, 3])
def test_a_list_of_1875_bytes_and_its_threshold(path: Path, format_: int) -> None:
    store = opened(path, 64, format_)
    store.replace(KEY, LIST_1875)
    assert files_of(path, KEY) == ["tags.txt"]
    store.close()
    for kib, name in ((1, COMPRESSED[format_]), (2, "tags.txt"), (1, COMPRESSED[format_])):
        store = opened(path, kib, format_)
        assert store.read(KEY) == LIST_1875
        assert not store.is_stored_as(KEY, LIST_1875)
        store.replace(KEY, LIST_1875)
        assert files_of(path, KEY) == [name]
        assert store.read(KEY) == LIST_1875
        assert store.is_stored_as(KEY, LIST_1875)
        store.close()


@pytest.mark.parametrize("kib", [1, 2])
@pytest.mark.parametrize("was_compressed", [True, False])
def test_a_store_of_flux_with_a_list_of_1875_bytes(path: Path, kib: int, was_compressed: bool) -> None:
    write_natively(path, KEY, tags_of_size(1875, "old"), was_compressed)
    (path / ".storage-version").write_text("2\n")
    store = opened(path, kib)
    store.replace(KEY, LIST_1875)
    assert files_of(path, KEY) == ["tags.txt.gz" if kib == 1 else "tags.txt"]
    assert store.read(KEY) == LIST_1875
    store.close()


def test_lists_of_many_repositories_are_isolated(path: Path) -> None:
    lists = {
        RepositoryKey("team-a", "app"): 91,
        RepositoryKey("team-b", "app"): 121,
        RepositoryKey("team-b", "app-2"): 180,
        RepositoryKey("team-c", "app"): 245,
    }
    plains = {key: taglist.encode(f"{key.namespace}.{n}" for n in range(count)) for key, count in lists.items()}
    store = opened(path, 1)
    for key, plain in plains.items():
        store.replace(key, plain)
    for key, count in lists.items():
        assert store.read(key) == plains[key]
        assert taglist.count(store.read(key)) == count
    for removed in lists:
        store.remove(removed)
        del plains[removed]
        assert {key: store.read(key) for key in plains} == plains
        store.replace(removed, b"again\n")
        plains[removed] = b"again\n"
    store.close()


@pytest.mark.parametrize("plain_is_newer_by", [HOUR_NS, 1, 0, -1, -HOUR_NS])
def test_of_both_variants_the_newest_wins_and_on_a_tie_the_compressed(path: Path, plain_is_newer_by: int) -> None:
    write_natively(path, KEY, b"plain\n", compressed=False, mtime_ns=NOW + plain_is_newer_by)
    write_natively(path, KEY, b"gzip\n", compressed=True, mtime_ns=NOW)
    (path / ".storage-version").write_text("2\n")
    store = opened(path, 1)
    newest = b"plain\n" if plain_is_newer_by > 0 else b"gzip\n"
    for _ in range(2):
        assert store.read(KEY) == newest
    assert files_of(path, KEY) == ["tags.txt", "tags.txt.gz"], "reading removes nothing"
    store.set_mtime(KEY, NOW - 2 * HOUR_NS)
    assert store.read(KEY) == newest
    assert len(files_of(path, KEY)) == 1
    store.close()


@pytest.mark.parametrize("first_wins", [True, False])
@pytest.mark.parametrize("name", ["tags.txt", "tags.txt.gz"])
def test_a_zstd_variant_takes_part(path: Path, name: str, first_wins: bool) -> None:
    store = opened(path, 1 / KIB, 3)
    store.replace(KEY, b"zstd\n")
    store.set_mtime(KEY, NOW)
    write_natively(path, KEY, b"other\n", name.endswith(".gz"), NOW + 1 if first_wins else NOW)
    assert store.read(KEY) == (b"other\n" if first_wins else b"zstd\n")
    store.remove(KEY)
    with pytest.raises(ListMissing):
        store.read(KEY)
    store.close()


def test_a_variant_of_another_format_is_none(path: Path) -> None:
    store = opened(path, 1 / KIB, 3)
    store.replace(KEY, b"zstd\n")
    store.close()
    (path / ".storage-version").write_text("2\n")
    store = opened(path, 1)
    with pytest.raises(ListMissing):
        store.read(KEY)
    write_natively(path, KEY, b"gzip\n", compressed=True, mtime_ns=NOW - HOUR_NS)
    assert store.read(KEY) == b"gzip\n"
    store.close()


def test_the_revision_is_stable_across_compression(path: Path) -> None:
    revisions = set()
    for kib in (1, 2, 64):
        store = opened(path, kib)
        store.replace(KEY, LIST_1875)
        revisions.add(taglist.revision(store.read(KEY)))
        store.close()
    assert revisions == {f"sha256:{hashlib.sha256(LIST_1875).hexdigest()}"}


def test_gzip_is_read_by_other_programs(path: Path) -> None:
    store = opened(path, 1)
    store.replace(KEY, LIST_1875)
    file = path / KEY.directory / "tags.txt.gz"
    assert gzip.decompress(file.read_bytes()) == LIST_1875
    assert gunzip(file) == LIST_1875
    store.close()


def test_an_empty_list_and_none(path: Path) -> None:
    store = opened(path, 1)
    with pytest.raises(RepositoryMissing):
        store.read(KEY)
    store.replace(KEY, b"")
    assert store.read(KEY) == b""
    assert files_of(path, KEY) == ["tags.txt"]
    store.close()
    write_natively(path, KEY, b"", compressed=True, mtime_ns=4 * NOW)
    store = opened(path, 1)
    assert store.read(KEY) == b""
    assert store.examine(KEY).size == 0
    store.close()


def test_a_deleted_repository_leaves_no_directory(path: Path) -> None:
    store = opened(path, 1)
    store.replace(KEY, LIST_1875)
    store.remove(KEY)
    store.remove_repository(KEY)
    assert os.listdir(path / "imagerepository" / KEY.namespace) == []
    store.close()


def test_what_flux_left_while_it_was_writing_is_no_list(path: Path) -> None:
    write_natively(path, KEY, LIST_1875, compressed=True)
    directory = path / KEY.directory
    (directory / "tags.txt271828").write_bytes(b"half a l")
    (directory / "tags.txt.gz314159").write_bytes(b"\x1f\x8b")
    (path / ".storage-version").write_text("2\n")
    store = opened(path, 1)
    assert store.read(KEY) == LIST_1875
    assert list(store.scan()) == [KEY]
    store.close()


def test_a_store_of_badger_comes_up_empty_with_its_sentinel(path: Path) -> None:
    for name in ("MANIFEST", "KEYREGISTRY", "DISCARD", "LOCK", "000001.vlog", "000007.sst", "00002.mem"):
        (path / name).write_bytes(b"badger")
    store = opened(path, 64, 3)
    assert list(store.scan()) == []
    assert os.listdir(path) == [".storage-version"]
    assert (path / ".storage-version").read_text() == "3\n"
    store.close()


def test_every_change_of_format_leaves_no_file_of_the_old_one(path: Path) -> None:
    """Plain, gzip and zstd, each after each other."""
    settings = {"tags.txt": (3, 64.0), "tags.txt.gz": (2, 1.0), "tags.txt.zst": (3, 1.0)}
    order = ["tags.txt", "tags.txt.gz", "tags.txt.zst", "tags.txt", "tags.txt.zst", "tags.txt.gz", "tags.txt"]
    (path / ".storage-version").write_text("3\n")
    for turn, name in enumerate(order):
        codec_format, kib = settings[name]
        store = open_store(Disk(), str(path), 3, policy_of(codec_format, int(kib * KIB)))
        plain = tags_of_size(1875, f"t{turn}")
        store.replace(KEY, plain)
        assert files_of(path, KEY) == [name]
        assert store.read(KEY) == plain
        store.close()
