"""Backup, restore and leaving as docs/operations.md describes them, with its own commands."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tagfs.disk import Disk
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, tags
from tests.support.stores import contents, open_store

pytestmark = pytest.mark.mount

DOCUMENT = Path(__file__).parent.parent / "docs" / "operations.md"
OLD, NEW = tags(300).encode(), tags(900).encode()
NAMES = [f"app-{number}" for number in range(30)]


def documented(command: str, **places: Path) -> str:
    """A command that the document has, with its places filled in."""
    assert f"`{command}`" in DOCUMENT.read_text() or command in DOCUMENT.read_text(), command
    for place, path in places.items():
        command = re.sub(rf"\b{place}\b", str(path), command)
    return command


def run(command: str, *codes: int) -> str:
    """-> what it complained of."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (codes or (0,)), done.stderr
    return done.stderr


def lists_of(path: Path) -> dict[str, bytes]:
    """Of a store, by the name of their repository."""
    store = open_store(Disk(), str(path))
    try:
        return {key.partition("/")[2]: plain for key, plain in contents(store).items()}
    finally:
        store.close()


def tagfs(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "tagfs", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def filled(mount: Daemon) -> Daemon:
    flux = Flux(mount.point)
    for name in NAMES:
        flux.set_tags(name, OLD, "team")
    return mount


def test_a_backup_beside_a_writer_has_the_old_list_or_the_new_one_of_each(filled: Daemon, tmp_path: Path) -> None:
    is_over = threading.Event()

    def write() -> None:
        flux = Flux(filled.point)
        while not is_over.is_set():
            for content in (NEW, OLD):
                for name in NAMES:
                    flux.set_tags(name, content, "team")

    writer = threading.Thread(target=write)
    writer.start()
    archive, restored = tmp_path / "backup.tar", tmp_path / "NEW"
    make = documented("tar -C STORE --exclude=.tagfs-stage -cf backup.tar .", STORE=filled.store)
    restore = documented("mkdir NEW && tar -C NEW -xpf backup.tar")
    try:
        for _ in range(5):
            said = run(f"cd {tmp_path} && {make}", 0, 1)
            run(f"cd {tmp_path} && rm -rf NEW && {restore}")
            found = json.loads(tagfs("check", "--json", str(restored)).stdout)
            assert {finding["kind"] for finding in found["findings"]} <= {"stale"}
            assert tagfs("check", "--repair", str(restored)).returncode == 0
            missed = set(re.findall(r"team/([\w-]+)/\S+: File removed before we read it", said))
            lists = lists_of(restored)
            assert set(lists) | missed == set(NAMES)
            assert set(lists.values()) <= {OLD, NEW}
    finally:
        is_over.set()
        writer.join()
    assert archive.stat().st_size > 0


def test_a_restore_is_shown_by_readers_that_stay(filled: Daemon, daemons: MakeDaemon, tmp_path: Path) -> None:
    reader = daemons("--read-only", expected=("until it is ready again",))
    run(
        f"cd {tmp_path} && {documented('tar -C STORE --exclude=.tagfs-stage -cf backup.tar .', STORE=filled.store)}",
        0,
        1,
    )
    filled.list_path("app-0").unlink()
    assert not reader.list_path("app-0").exists()
    filled.stop()
    run(f"cd {tmp_path} && {documented('mkdir NEW && tar -C NEW -xpf backup.tar')}")
    run(f"cd {tmp_path} && {documented('mv STORE OLD && mv NEW STORE', STORE=filled.store)}")

    def shown() -> bytes | None:
        try:
            return reader.list_path("app-0").read_bytes()
        except (BlockingIOError, FileNotFoundError):
            return None

    eventually(lambda: shown() == OLD, "the restored list")
    again = daemons(store=filled.store)
    assert again.list_path("app-0").read_bytes() == OLD


def test_what_is_left_to_flux_is_a_store_of_its_format(filled: Daemon) -> None:
    filled.stop()
    command = documented("tagfs convert STORE --codec gzip --storage-compression-threshold 64", STORE=filled.store)
    assert tagfs(*command.split()[1:]).returncode == 0
    run(documented("rm -rf STORE/.tagfs-*", STORE=filled.store))
    assert (filled.store / ".storage-version").read_text() == "2\n"
    assert sorted(path.name for path in filled.store.iterdir()) == [".storage-version", "imagerepository"]
    for path in filled.store.glob("imagerepository/team/*/*"):
        # Below 64 KiB Flux keeps them plain, too.
        assert (path.name, path.read_bytes()) == ("tags.txt", OLD)
