"""Sentinels: what each directory is found to be, by a writer and by a reader, and what a writer makes of it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagfs import sentinel
from tagfs.disk import Disk
from tagfs.errors import StoreRefused, StoreWaiting
from tagfs.sentinel import Condition, Currency, is_current, prepare, require_ready
from tests.support.faulty_disk import FaultyDisk
from tests.support.places import fast_directory, open_descriptors
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import KEY, LARGE, SMALL, write_natively

VERSION = ".storage-version"
MARKER = ".storage-wipe-in-progress"
BADGER_FILES = ("MANIFEST", "KEYREGISTRY", "DISCARD", "LOCK", "000001.vlog", "000002.sst", "00001.mem")


class Place:
    """A directory, and what a writer and a reader make of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disk = FaultyDisk(Disk())
        self.root = self.disk.open_root(str(path))

    def files(self, *names: str, content: str = "x") -> "Place":
        for name in names:
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return self

    def version(self, text: str = "2\n") -> "Place":
        return self.files(VERSION, content=text)

    def lists(self) -> "Place":
        write_natively(self.path, KEY, SMALL, compressed=False)
        write_natively(self.path, KEY, LARGE, compressed=True)
        return self

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def condition(self) -> Condition:
        return sentinel.examine(self.disk, self.root).condition

    def prepare(self, new_format: int = 3, wipe_foreign: bool = False) -> tuple[int, Condition]:
        format_, found = prepare(self.disk, self.root, str(self.path), new_format, wipe_foreign)
        return format_, found.condition

    def require_ready(self) -> int:
        return require_ready(self.disk, self.root, str(self.path))


@pytest.fixture
def place() -> Iterator[Place]:
    with fast_directory() as path:
        before = open_descriptors()
        place = Place(path)
        yield place
        place.disk.close(place.root)
        assert open_descriptors() == before


def is_ready_and_empty(place: Place, format_: int) -> bool:
    return place.names() == [VERSION] and (place.path / VERSION).read_text() == f"{format_}\n"


# -- the table: (what is there, what it is, what a writer makes of it, what a reader does)

EMPTY: list[Callable[[Place], object]] = [
    lambda place: None,
    lambda place: place.files("lost+found/#12"),
    lambda place: place.files(f"{VERSION}-tagfs", content=""),
    lambda place: place.files(f"{VERSION}-3141592653", content="2"),
    lambda place: place.files("lost+found/#12", f"{VERSION}-tagfs", f"{VERSION}-27"),
]


@pytest.mark.parametrize("new_format", [2, 3])
@pytest.mark.parametrize("make", EMPTY, ids=["nothing", "lost+found", "temporary", "temporary-of-flux", "all"])
def test_an_empty_directory_becomes_a_store(place: Place, make: Callable[[Place], object], new_format: int) -> None:
    make(place)
    was = set(place.names())
    with pytest.raises(StoreWaiting, match=Condition.EMPTY.value):
        place.require_ready()
    assert set(place.names()) == was
    assert place.prepare(new_format) == (new_format, Condition.EMPTY)
    assert (place.path / VERSION).read_text() == f"{new_format}\n"
    assert place.require_ready() == new_format
    assert "lost+found" not in was or (place.path / "lost+found" / "#12").exists()
    assert f"{VERSION}-tagfs" not in place.names()


@pytest.mark.parametrize("text", ["2\n", "2", "2\r\n", " 2 \n", "\n2\n\n", "3\n", "3", "3\r\n"])
def test_a_known_version_is_taken_as_it_is(place: Place, text: str) -> None:
    place.version(text).lists().files("lost+found/#12", "notes")
    was = place.names()
    format_ = int(text)
    assert place.require_ready() == format_
    for new_format in (2, 3):
        assert place.prepare(new_format) == (format_, Condition.READY)
    assert place.names() == was
    assert (place.path / VERSION).read_bytes() == text.encode()


@pytest.mark.parametrize("version", [None, "2\n", "3\n", "2", "unknown", ""])
def test_a_wipe_that_was_begun_is_finished(place: Place, version: str | None) -> None:
    place.lists().files(*BADGER_FILES, "lost+found/#12").files(MARKER, content="")
    if version is not None:
        place.version(version)
    was = place.names()
    with pytest.raises(StoreWaiting, match="wipe"):
        place.require_ready()
    assert place.names() == was
    format_, found = place.prepare(3)
    assert found is Condition.WIPING
    assert format_ == (int(version) if version in ("2\n", "3\n", "2") else 3)
    assert place.names() == [VERSION, "lost+found"]
    assert (place.path / "lost+found" / "#12").exists()
    assert place.require_ready() == format_


def test_a_marker_alone_is_a_wipe(place: Place) -> None:
    place.files(MARKER, content="")
    assert place.prepare(2) == (2, Condition.WIPING)
    assert is_ready_and_empty(place, 2)


BADGER_NAMES = [
    BADGER_FILES,
    ("MANIFEST", "KEYREGISTRY"),
    ("MANIFEST-REWRITE", "LOCK"),
    ("MANIFEST", "REWRITE-KEYREGISTRY", "000000.vlog"),
    ("MANIFEST", "123456.sst", "99999.mem", "000123.vlog", "DISCARD", "lost+found/#1"),
    ("MANIFEST", f"{VERSION}-3141"),
]


@pytest.mark.parametrize("new_format", [2, 3])
@pytest.mark.parametrize("names", BADGER_NAMES, ids=len)
def test_a_badger_is_wiped(place: Place, names: tuple[str, ...], new_format: int) -> None:
    place.files(*names)
    was = place.names()
    with pytest.raises(StoreWaiting, match="BadgerDB"):
        place.require_ready()
    assert place.names() == was
    assert place.prepare(new_format) == (new_format, Condition.BADGER)
    assert [name for name in place.names() if name != "lost+found"] == [VERSION]
    assert place.require_ready() == new_format


FOREIGN = [
    ("photos/1.jpg",),
    (".bashrc", ".ssh/id"),
    ("LOCK",),
    ("000001.vlog",),
    ("1.mem", "2.mem"),
    ("notes", *BADGER_FILES),
    ("MANIFEST/letters", "KEYREGISTRY"),
    ("MANIFEST", "000001.vlog/home"),
    ("MANIFEST", "000001.vlog.bak"),
    ("MANIFEST-000001", "CURRENT", "LOCK", "000003.log"),
    ("manifest",),
    ("imagerepository/apps/podinfo/tags.txt",),
    (".storage-version.bak",),
    (".tagfs-stage/1",),
]


@pytest.mark.parametrize("names", FOREIGN, ids=lambda names: names[0].replace("/", ":"))
def test_anything_else_is_refused_and_named(place: Place, names: tuple[str, ...]) -> None:
    place.files(*names, "lost+found/#12")
    was = place.names()
    for call in (place.prepare, place.require_ready):
        with pytest.raises(StoreRefused) as caught:
            call()
        told = str(caught.value)
        assert str(place.path) in told
        assert names[0].split("/")[0] in told
        assert "lost+found" not in told
    assert place.names() == was


@pytest.mark.parametrize("names", FOREIGN, ids=lambda names: names[0].replace("/", ":"))
def test_who_insists_gets_it_wiped(place: Place, names: tuple[str, ...]) -> None:
    place.files(*names, "lost+found/#12")
    assert place.prepare(3, wipe_foreign=True) == (3, Condition.FOREIGN)
    assert place.names() == [VERSION, "lost+found"]
    assert (place.path / "lost+found" / "#12").exists()


def test_a_refusal_names_a_few_and_says_that_there_are_others(place: Place) -> None:
    place.files(*(f"file-{n}" for n in range(9)))
    with pytest.raises(StoreRefused, match=r"file-0, file-1, file-2, file-3, file-4 and others.*--wipe-foreign"):
        place.prepare()


def test_lists_without_a_version_are_refused_with_another_cure(place: Place) -> None:
    place.lists().files(*(f"A{n}" for n in range(9)))
    with pytest.raises(StoreRefused, match="write the format's version first: echo 2 >") as caught:
        place.prepare()
    assert "wipe" not in str(caught.value)
    place.version()
    assert place.prepare() == (2, Condition.READY)


UNKNOWN = {
    "empty": b"",
    "blank": b" \n",
    "later": b"4\n",
    "one": b"1\n",
    "zero-padded": b"02\n",
    "words": b"version 2\n",
    "two-lines": b"2\n3\n",
    "arabic": "\u0662\n".encode(),
    "separator": b"\x1c2\n",
    "nul": b"2\0",
    "latin": b"\xff\xfe2\n",
    "huge": b"2" * (1 << 20),
    "padded-beyond-reading": b"2" + b" " * 500 + b"9",
    "signed": b"+2",
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_version_is_refused_and_named(place: Place, text: bytes) -> None:
    (place.path / VERSION).write_bytes(text)
    place.lists()
    was = place.names()
    for call in (place.prepare, place.require_ready):
        with pytest.raises(StoreRefused, match=r"its version is not known \(\.storage-version says '") as caught:
            call()
        assert len(str(caught.value)) < 400
    assert place.names() == was
    assert not is_current(place.disk, place.root, 2)
    assert place.prepare(3, wipe_foreign=True) == (3, Condition.UNKNOWN_VERSION)
    assert is_ready_and_empty(place, 3)


KINDS: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "full-directory": lambda path: (path / "below").mkdir(parents=True),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "loop": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_version_that_is_no_file_is_refused(place: Place, make: Callable[[Path], object]) -> None:
    make(place.path / VERSION)
    for call in (place.prepare, place.require_ready):
        with pytest.raises(StoreRefused, match=r"\.storage-version is no regular file"):
            call()
    assert not is_current(place.disk, place.root, 2)
    assert place.prepare(2, wipe_foreign=True) == (2, Condition.UNKNOWN_VERSION)
    assert is_ready_and_empty(place, 2)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_marker_that_is_no_file_is_one_all_the_same(place: Place, make: Callable[[Path], object]) -> None:
    make(place.path / MARKER)
    place.version("2\n").lists()
    with pytest.raises(StoreWaiting):
        place.require_ready()
    assert place.prepare(3) == (2, Condition.WIPING)
    assert is_ready_and_empty(place, 2)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_temporary_sentinel_that_is_no_file_is_replaced(place: Place, make: Callable[[Path], object]) -> None:
    make(place.path / f"{VERSION}-tagfs")
    assert place.prepare(3) == (3, Condition.EMPTY)
    assert is_ready_and_empty(place, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_a_version_that_may_not_be_read_is_an_error_and_no_empty_store(place: Place) -> None:
    place.version().lists()
    (place.path / VERSION).chmod(0)
    place.path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            place.require_ready()
        except PermissionError:
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- the wipe


def test_the_wipe_keeps_to_its_order(place: Place) -> None:
    """Marker, then version, then removal, then the marker's end: each durable before the next."""
    place.files("MANIFEST", "000001.vlog")
    place.disk.arm(None)
    place.prepare(3)
    steps = [call for call in place.disk.calls if call in ("create", "sync", "sync_dir", "rename", "unlink")]
    assert steps == [
        *("create", "sync", "sync_dir"),
        *("create", "sync", "rename", "sync_dir"),
        *("unlink", "unlink", "sync_dir"),
        *("unlink", "sync_dir"),
    ]


def test_a_new_version_is_durable_before_it_is_named(place: Place) -> None:
    place.disk.arm(None)
    place.prepare(3)
    steps = [call for call in place.disk.calls if call in ("create", "write", "sync", "sync_dir", "rename", "unlink")]
    assert steps == ["create", "write", "sync", "rename", "sync_dir"]


def test_a_ready_store_is_not_written_to(place: Place) -> None:
    place.version("3\n").lists()
    place.disk.arm(None)
    place.prepare(2)
    place.require_ready()
    assert set(place.disk.calls) <= {"names", "stat", "open_file", "read", "close"}


@pytest.fixture
def outside() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.mark.parametrize("at", ["", "imagerepository/", "imagerepository/apps/", "imagerepository/apps/podinfo/"])
def test_a_wipe_removes_links_and_touches_nothing_they_lead_to(place: Place, outside: Path, at: str) -> None:
    (outside / "deep").mkdir(parents=True)
    (outside / "precious").write_text("x")
    (outside / "deep" / "tags.txt").write_text("v1\n")
    store = place.path
    (store / at).mkdir(parents=True, exist_ok=True)
    for name, target in {
        "to-directory": outside,
        "to-file": outside / "precious",
        "relative": Path(os.path.relpath(outside, store / at)),
        "loop": Path("loop"),
        "up": Path(".."),
        "dangling": Path("nowhere"),
        "root": Path("/"),
    }.items():
        (store / at / name).symlink_to(target)
    os.mkfifo(store / at / "fifo")
    os.link(outside / "precious", store / at / "hard")
    place.files(MARKER, content="")
    place.prepare(3)
    assert is_ready_and_empty(place, 3)
    assert (outside / "precious").read_text() == "x"
    assert (outside / "deep" / "tags.txt").read_text() == "v1\n"
    assert (outside / "precious").stat().st_nlink == 1


def test_a_name_that_is_no_text_is_told_and_wiped(place: Place) -> None:
    os.close(os.open(os.fsencode(place.path) + b"/caf\xe9", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(StoreRefused) as caught:
        place.prepare()
    str(caught.value).encode("utf-8", "backslashreplace")
    place.prepare(3, wipe_foreign=True)
    assert is_ready_and_empty(place, 3)


def test_a_store_that_vanished_is_not_current(place: Place) -> None:
    place.version("3\n")
    assert is_current(place.disk, place.root, 3)
    assert not is_current(place.disk, place.root, 2)
    place.files(MARKER)
    assert not is_current(place.disk, place.root, 3)
    shutil.rmtree(place.path)
    assert not is_current(place.disk, place.root, 3)
    place.path.mkdir()


def _write_over(place: Place) -> None:
    with (place.path / VERSION).open("r+") as file:
        file.write("2")


def _make_a_link(place: Place) -> None:
    (place.path / VERSION).unlink()
    (place.path / VERSION).symlink_to("/etc/hostname")


CHANGES: dict[str, Callable[[Place], object]] = {
    "written over": _write_over,
    "replaced": lambda place: sentinel.write_version(place.disk, place.root, 2),
    "removed": lambda place: (place.path / VERSION).unlink(),
    "made a link": _make_a_link,
    "marked": lambda place: place.files(MARKER),
    "gone": lambda place: shutil.rmtree(place.path),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_sentinels_is_seen_at_the_next_look(place: Place, change: Callable[[Place], object]) -> None:
    place.version("3\n")
    currency = Currency(place.disk, place.root, 3)
    for _ in range(3):
        assert currency.holds()
    change(place)
    for _ in range(3):
        assert not currency.holds()
    currency.close()
    place.path.mkdir(exist_ok=True)


def test_a_sentinel_that_is_put_back_holds_again(place: Place) -> None:
    place.version("3\n")
    currency = Currency(place.disk, place.root, 3)
    for format_, is_current_ in ((2, False), (3, True), (3, True), (2, False)):
        sentinel.write_version(place.disk, place.root, format_)
        assert currency.holds() is is_current_
    currency.close()


def test_a_sentinel_is_opened_once_and_closed_with_its_store(place: Place) -> None:
    disk = SimulatedDisk()
    root = disk.open_root("/")
    sentinel.write_version(disk, root, 3)
    currency = Currency(disk, root, 3)
    assert currency.holds()
    opened = disk.open_descriptors
    assert currency.holds()
    sentinel.write_version(disk, root, 3)
    assert currency.holds()
    assert disk.open_descriptors == opened
    currency.close()
    assert disk.open_descriptors == opened - 1


def test_an_error_of_the_disk_is_no_wiped_store(place: Place) -> None:
    class Failing(Disk):
        def read(self, file: int, size: int, offset: int = 0) -> bytes:
            raise OSError(5, "Input/output error")

    place.version("3\n")
    with pytest.raises(OSError, match="Input/output error"):
        is_current(Failing(), place.root, 3)


# -- as Flux leaves them


def test_a_store_of_flux_is_taken_over_and_given_back(place: Place) -> None:
    """Flux writes its version with a newline, and compares it without."""
    place.version("2\n").lists()
    assert place.prepare(2) == (2, Condition.READY)
    sentinel.write_version(place.disk, place.root, 3)
    assert (place.path / VERSION).read_bytes() == b"3\n"
    assert (place.path / VERSION).stat().st_mode & 0o777 == 0o600
    sentinel.write_version(place.disk, place.root, 2)
    assert (place.path / VERSION).read_bytes() == b"2\n"
    assert place.names() == [VERSION, "imagerepository"]


def test_a_gate_of_flux_that_flipped_back_leaves_a_badger(place: Place) -> None:
    """Marker, version removed, all but the two removed, marker removed: cut short before each step."""
    place.version("2\n").lists()
    steps: list[Callable[[], object]] = [
        lambda: place.files(MARKER, content=""),
        lambda: (place.path / VERSION).unlink(),
        lambda: shutil.rmtree(place.path / "imagerepository"),
    ]
    for step in steps:
        step()
        assert place.condition() is Condition.WIPING
    (place.path / MARKER).unlink()
    assert place.condition() is Condition.EMPTY
    place.files(*BADGER_FILES)
    assert place.condition() is Condition.BADGER


def test_a_gate_of_flux_that_flipped_on_wipes_a_badger(place: Place) -> None:
    """Marker, version, all but the two removed, marker removed: cut short after each step."""
    place.files(*BADGER_FILES)
    steps: list[Callable[[], object]] = [
        lambda: place.files(MARKER, content=""),
        lambda: place.files(f"{VERSION}-271828", content="2\n"),
        lambda: (place.path / f"{VERSION}-271828").rename(place.path / VERSION),
        lambda: (place.path / "MANIFEST").unlink(),
    ]
    for step in steps:
        step()
        assert place.condition() is Condition.WIPING
    for name in BADGER_FILES[1:]:
        (place.path / name).unlink()
    (place.path / MARKER).unlink()
    assert place.condition() is Condition.READY
    assert place.require_ready() == 2
