"""What a writer that was killed, or Flux, has left in a store."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import tidy
from tagfs.directory import DirectoryStore
from tagfs.names import BASE, STAGE_DIRECTORY, WIPE_SENTINEL, RepositoryKey
from tagfs.tending import left_stages
from tests.support.beneath import directory_store, list_file, no_descriptor_left, put
from tests.support.places import fast_directory

KEY = RepositoryKey("team", "app")
OTHER = RepositoryKey("team", "web")
OLD = time.time() - tidy.FLUX_TEMPORARY_AGE - 60


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.fixture
def store(place: Path) -> Iterator[DirectoryStore]:
    with no_descriptor_left():
        one = directory_store(place)
        yield one
        one.close()


def leave(place: Path, name: str, when: float = OLD) -> Path:
    """A file beside the list of KEY, of some age."""
    path = list_file(place, KEY).with_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left\n")
    os.utime(path, (when, when))
    return path


def test_the_stages_of_an_earlier_writer_are_removed(store: DirectoryStore, place: Path) -> None:
    stage = store.stage(KEY, b"v1\n")
    earlier = store.stages.names()
    ours = store.stage(KEY, b"v2\n")
    assert tidy.remove_stages(store, earlier) == 1
    assert tidy.remove_stages(store, earlier) == 1  # gone already
    assert tidy.remove_stages(store, []) == 0
    store.publish(ours)
    assert store.read(KEY) == b"v2\n"
    assert os.listdir(place / STAGE_DIRECTORY) == []
    store.discard(stage)


@pytest.mark.parametrize("name", ["tags.txt1", "tags.txt123456789", "tags.txt.gz42"])
def test_old_temporaries_of_flux_are_removed_and_young_ones_are_left(
    store: DirectoryStore, place: Path, name: str
) -> None:
    put(place, KEY, b"v1\n")
    old, young = leave(place, name), leave(place, name + "7", time.time())
    assert tidy.look(store, [KEY]) == []
    assert (old.exists(), young.exists()) == (False, True)
    assert store.read(KEY) == b"v1\n"


@pytest.mark.parametrize("name", ["tags.txt", "tags.txt.gz", "tags.txt.zst", "tags.txt.bak", "notes", "tags.txt1a"])
def test_whatever_else_is_old_is_left(store: DirectoryStore, place: Path, name: str) -> None:
    path = leave(place, name)
    tidy.look(store, [KEY])
    assert path.read_bytes() == b"left\n"


def test_a_directory_and_the_target_of_a_link_are_left(store: DirectoryStore, place: Path) -> None:
    target = leave(place, "notes")
    list_file(place, KEY).with_name("tags.txt1").mkdir()
    link = list_file(place, KEY).with_name("tags.txt2")
    link.symlink_to(target)
    os.utime(link, (OLD, OLD), follow_symlinks=False)
    tidy.look(store, [KEY])
    assert target.exists() and list_file(place, KEY).with_name("tags.txt1").is_dir()
    assert not link.is_symlink()


def test_hidden_and_stale_lists_are_told_of_once(store: DirectoryStore, place: Path) -> None:
    put(place, KEY, b"v1\n")
    put(place, OTHER, b"v1\n")
    assert tidy.look(store, [KEY, OTHER]) == []
    store.hide(KEY)
    leave(place, ".tagfs-hidden.tags.txt.gz")
    assert tidy.look(store, [KEY, OTHER]) == [KEY]
    list_file(place, OTHER, ".gz").write_bytes(b"")
    assert tidy.look(store, [KEY, OTHER]) == [KEY, OTHER]


def test_what_vanishes_meanwhile_is_no_error(store: DirectoryStore, place: Path) -> None:
    put(place, KEY, b"v1\n")
    assert tidy.look(store, [RepositoryKey("none", "app"), RepositoryKey("team", "none"), KEY]) == []
    (place / BASE / "team" / "web").write_bytes(b"a file")
    assert tidy.look(store, [OTHER]) == []


def test_nothing_is_looked_for_in_a_store_that_is_being_wiped(store: DirectoryStore, place: Path) -> None:
    (place / WIPE_SENTINEL).touch()
    assert left_stages(store) == []
