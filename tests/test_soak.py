"""What a soak found, each as a test of its own; and the soak."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs.errors import VersionGone
from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tagfs.replacing import WritableTree

KEY = RepositoryKey("team", "app")

KNOWN = 1024
"""Versions that the kernel of a read-only mount remembers at once, at most: the soak has a few lists."""


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    store = MemoryStore(1 << 20)
    store.make_namespace(KEY.namespace)
    store.make_repository(KEY)
    store.replace(KEY, b"v1\n")
    yield store
    store.close()


def test_a_node_that_a_reader_opens_late_never_becomes_another_version(store: MemoryStore) -> None:
    """A node that came to stand for a newer version was cut off at the size that the kernel knew of the older one."""
    tree = WritableTree(store, 1 << 20)
    directory = tree.inodes.directory(("imagerepository", KEY.namespace, KEY.name)).id
    looked_up = tree.lookup(directory, b"tags.txt", pid=7)
    store.replace(KEY, b"v1\nv2\n")
    with pytest.raises(VersionGone):
        tree.open(looked_up.id, os.O_RDONLY, pid=7)
    assert tree.attributes(looked_up.id).size == looked_up.size


def test_the_second_open_of_a_list_that_is_replaced_all_the_time_succeeds(store: MemoryStore) -> None:
    """The kernel looks up and opens once more, and no third time.  It may look up twice for that."""
    tree = WritableTree(store, 1 << 20)
    directory = tree.inodes.directory(("imagerepository", KEY.namespace, KEY.name)).id
    first = tree.lookup(directory, b"tags.txt", pid=7)
    store.replace(KEY, b"v1\nv2\n")
    with pytest.raises(VersionGone):
        tree.open(first.id, os.O_RDONLY, pid=7)
    tree.lookup(directory, b"tags.txt", pid=7)
    store.replace(KEY, b"v1\nv2\nv3\n")
    second = tree.lookup(directory, b"tags.txt", pid=7)
    store.replace(KEY, b"v1\nv2\nv3\nv4\n")
    handle = tree.open(second.id, os.O_RDONLY, pid=7)
    assert tree.read(handle, 0, 100) == b"v1\nv2\nv3\n"
    assert second.size == tree.attributes(second.id).size == 9
    tree.release(handle)
    with pytest.raises(VersionGone):
        tree.open(second.id, os.O_RDONLY, pid=8)


SECONDS = float(os.environ.get("TAGFS_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("TAGFS_SOAK_SEED", str(random.randrange(10**6))))

GROWTH = 16 << 10
"""KiB that a daemon may be larger after hours than after seconds: what Python keeps of its largest moment."""


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 1.5 + 180)
def test_every_read_of_a_soak_shows_one_version_and_none_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.soak", "--json", str(told), "--base", str(tmp_path / "soak")]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--seed", str(SEED)], capture_output=True, text=True, check=False
    )
    with capsys.disabled():
        print(f"\n{done.stdout}{done.stderr}", end="")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(told.read_text())
    assert report["violations"] == []
    counts = report["counts"]
    # A soak that did little says little; a tenth of what two busy cores do is enough.
    assert counts["reads"] > 100 * SECONDS
    assert counts["commits"] > 10 * SECONDS
    assert counts["listings"] > SECONDS
    assert report["kills"] >= max(1, SECONDS / 20)
    assert counts["stale"] <= counts["reads"] / 1000
    for who, (warm, now) in report["memory"].items():
        assert now <= warm + GROWTH, f"{who} grew from {warm} to {now} KiB"
    for who, (new, now) in report["descriptors"].items():
        kept = KNOWN if who == "read-only" else 0
        assert now <= new + kept + 1, f"{who} has {now} descriptors, {new} when it was new"
