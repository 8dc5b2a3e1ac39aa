"""Check: every kind of finding, every repair, and that no repair loses a list."""

import gzip
import os
import re
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.check import ABANDONED_SECONDS, LINES_SHOWN, Check
from tagfs.codec import CODECS, GZIP, PLAIN, ZSTD, Codec, Undecodable
from tagfs.disk import Disk
from tagfs.errors import StoreHeld, StoreRefused
from tagfs.findings import Finding, Findings
from tagfs.holder import take
from tagfs.names import HIDDEN_PREFIX, QUARANTINE_DIRECTORY, STAGE_DIRECTORY, VERSION_SENTINEL, WIPE_SENTINEL
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import fast_directory
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import KEY, LARGE, NEIGHBOUR, OTHER_LARGE, OTHER_SMALL, SMALL, open_store

LIMIT = 1 << 20
SECOND = 1_000_000_000
OLD, NEW = 1_700_000_000 * SECOND, 1_700_000_001 * SECOND
TORN_GZIP = gzip.compress(LARGE)[:-9]
TORN_ZSTD = ZSTD.encode(LARGE)[:-9]


def checked(path: Path, repair: bool = False, disk: Disk | None = None) -> Findings:
    check = Check(str(path), LIMIT, repair, settling_seconds=0, disk=disk)
    try:
        for _ in check.run():
            pass
    finally:
        check.close()
    return check.findings


def only(findings: Findings) -> Finding:
    assert len(findings.kept) == 1, findings.kept
    return findings.kept[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sound store with two lists."""
    path = tmp_path / "store"
    path.mkdir(mode=0o700)
    with_store = open_store(Disk(), str(path))
    with_store.replace(KEY, LARGE)
    with_store.replace(NEIGHBOUR, SMALL)
    with_store.close()
    return path


def put(store: Path, name: str, stored: bytes, mtime_ns: int = NEW, key: str = KEY.directory) -> Path:
    file = store / key / name
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_bytes(stored)
    file.chmod(0o600)
    os.utime(file, ns=(mtime_ns, mtime_ns))
    return file


def clear(store: Path) -> Path:
    """The directory of KEY, without its list."""
    for file in (store / KEY.directory).iterdir():
        file.unlink()
    return store / KEY.directory


def everything(path: Path) -> Counter[bytes]:
    """The decoded content of every file that can be decoded, and the bytes of all others, wherever they are."""
    found: Counter[bytes] = Counter()
    for directory, _, names in os.walk(path):
        for name in names:
            file = Path(directory, name)
            if file.is_symlink() or not file.is_file() or name.startswith(VERSION_SENTINEL):
                continue
            stored = file.read_bytes()
            codec = GZIP if ".gz" in name else ZSTD if ".zst" in name else PLAIN
            try:
                found[codec.decode(stored, LIMIT)] += 1
            except Undecodable:
                found[stored] += 1
    return found


def tree(path: Path) -> dict[str, bytes | str]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        if file.is_file() and not file.is_symlink()
        else stat.filemode(file.lstat().st_mode)
        for file in path.rglob("*")
    }


def test_a_sound_store_has_nothing_to_tell(store: Path) -> None:
    findings = checked(store)
    assert findings.kept == []
    assert (findings.format, findings.lists, findings.problems) == (3, 2, 0)


def test_a_check_writes_nothing(store: Path) -> None:
    put(store, "tags.txt", TORN_GZIP)
    put(store, "tags.txt.gz", TORN_GZIP, OLD)
    put(store, HIDDEN_PREFIX + "tags.txt", SMALL)
    put(store, "left", SMALL, key=STAGE_DIRECTORY)
    before = tree(store)
    assert checked(store).problems
    assert tree(store) == before


# -- corrupt


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("tags.txt.gz", TORN_GZIP),
        ("tags.txt.gz", b""),
        ("tags.txt.gz", b"\x1f\x8b"),
        ("tags.txt.gz", gzip.compress(LARGE) + b"more"),
        ("tags.txt.zst", TORN_ZSTD),
        ("tags.txt.zst", b""),
        ("tags.txt.zst", ZSTD.encode(LARGE)[:40] + b"\0" + ZSTD.encode(LARGE)[41:]),
        ("tags.txt.zst", os.urandom(100)),
    ],
)
def test_a_corrupt_list_is_told_and_set_aside(store: Path, name: str, stored: bytes) -> None:
    clear(store)
    put(store, name, stored)
    finding = only(checked(store))
    assert (finding.kind, finding.path, finding.is_problem) == ("corrupt", f"{KEY.directory}/{name}", True)
    mended = only(Findings("", kept=[f for f in checked(store, repair=True).kept if f.kind == "corrupt"]))
    aside = store / QUARANTINE_DIRECTORY / KEY.namespace / KEY.name / name
    assert mended.mended == f"moved to {aside.relative_to(store)}"
    assert aside.read_bytes() == stored
    assert (store / KEY.directory).is_dir()
    assert checked(store, repair=True).problems == 0


def test_what_is_set_aside_never_overwrites_what_was_before(store: Path) -> None:
    clear(store)
    for stored in (TORN_GZIP, TORN_GZIP + b"\0", TORN_GZIP[:40]):
        put(store, "tags.txt.gz", stored)
        assert checked(store, repair=True).remaining == 0
    aside = store / QUARANTINE_DIRECTORY / KEY.namespace / KEY.name
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == {
        "tags.txt.gz": TORN_GZIP,
        "tags.txt.gz.1": TORN_GZIP + b"\0",
        "tags.txt.gz.2": TORN_GZIP[:40],
    }


def test_quarantine_is_told_as_a_note(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.gz", TORN_GZIP)
    checked(store, repair=True)
    finding = only(checked(store))
    assert (finding.kind, finding.is_problem) == ("quarantine", False)
    assert finding.reason.startswith("1 kept here")


def test_a_corrupt_winner_gives_way_to_an_older_list_that_reads_well(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.gz", TORN_GZIP, NEW)
    older = put(store, "tags.txt", OTHER_SMALL, OLD)
    assert "tags.txt, older, is shown once" in only(checked(store)).reason
    findings = checked(store, repair=True)
    assert [finding.kind for finding in findings.kept if finding.is_problem] == ["corrupt"]
    assert older.read_bytes() == OTHER_SMALL
    assert not (store / KEY.directory / "tags.txt.gz").exists()


def test_a_list_over_the_limit_is_told_and_left(store: Path) -> None:
    clear(store)
    for name, codec in (("tags.txt", PLAIN), ("tags.txt.gz", GZIP), ("tags.txt.zst", ZSTD)):
        file = put(store, name, codec.encode(b"v1\n" * (LIMIT // 2)))
        finding = only(checked(store, repair=True))
        assert (finding.kind, finding.mended) == ("too-large", None)
        assert "--max-list-size" in finding.reason
        file.unlink()


def test_a_small_promise_over_a_huge_file_is_corrupt_and_not_read(store: Path) -> None:
    clear(store)
    file = put(store, "tags.txt.gz", gzip.compress(SMALL))
    with file.open("r+b") as huge:
        huge.truncate(1 << 36)
        huge.seek((1 << 36) - 4)
        huge.write(b"\x0e\0\0\0")
    assert only(checked(store)).kind == "corrupt"


def test_a_list_that_may_not_be_read_is_told_and_left(store: Path) -> None:
    class Forbidding(Disk):
        def open_file(self, directory: int, name: str) -> int:
            if name == "tags.txt.zst":
                raise PermissionError(13, "Permission denied", name)
            return super().open_file(directory, name)

    finding = only(checked(store, repair=True, disk=Forbidding()))
    assert (finding.kind, finding.reason, finding.mended) == ("unreadable", "Permission denied", None)
    assert (store / KEY.directory / "tags.txt.zst").exists()


# -- invalid


def test_bad_tags_are_told_by_line_and_left(store: Path) -> None:
    clear(store)
    file = put(store, "tags.txt", b"v1\n\nv 2\n-x\nv3")
    for repair in (False, True):
        finding = only(checked(store, repair))
        assert finding.kind == "invalid"
        assert [number for number, _ in finding.lines] == [2, 3, 4, 5]
        assert finding.mended is None
    assert file.exists()


def test_of_many_bad_lines_the_first_are_told_and_the_rest_counted(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.gz", gzip.compress(b"bad tag\n" * 100))
    finding = only(checked(store))
    assert len(finding.lines) == LINES_SHOWN
    assert finding.reason.endswith(f"and {100 - LINES_SHOWN} more lines")


# -- stale


@pytest.mark.parametrize("winner", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("loser", CODECS, ids=lambda codec: codec.name)
def test_a_stale_variant_is_removed(store: Path, winner: Codec, loser: Codec) -> None:
    if winner is loser:
        return
    clear(store)
    kept = put(store, f"tags.txt{winner.suffix}", winner.encode(LARGE), NEW)
    stale = put(store, f"tags.txt{loser.suffix}", loser.encode(OTHER_LARGE), OLD)
    finding = only(checked(store))
    assert (finding.kind, finding.path) == ("stale", f"{KEY.directory}/{stale.name}")
    assert only(checked(store, repair=True)).mended == "removed"
    assert kept.exists()
    assert not stale.exists()
    assert checked(store).kept == []


@pytest.mark.parametrize("doubtful", [b"", b"\0" * len(SMALL), b"v1\nv2"])
def test_an_older_list_is_kept_where_the_newer_one_may_be_what_a_power_cut_left(store: Path, doubtful: bytes) -> None:
    clear(store)
    put(store, "tags.txt", doubtful, NEW)
    put(store, "tags.txt.gz", gzip.compress(LARGE), OLD)
    findings = checked(store, repair=True)
    stale = next(finding for finding in findings.kept if finding.kind == "stale")
    assert stale.mended
    assert stale.mended.startswith("moved to")
    aside = store / QUARANTINE_DIRECTORY / KEY.namespace / KEY.name / "tags.txt.gz"
    assert gzip.decompress(aside.read_bytes()) == LARGE


def test_a_second_variant_that_a_writer_is_about_to_remove_is_no_finding(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.zst", ZSTD.encode(LARGE), NEW)
    stale = put(store, "tags.txt", OTHER_SMALL, OLD)
    check = Check(str(store), LIMIT, False, settling_seconds=0)
    steps = check.run()
    next(steps)
    stale.unlink()
    for _ in steps:
        pass
    check.close()
    assert check.findings.kept == []


def test_a_variant_that_flux_writes_anew_beside_a_repair_is_left(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.zst", ZSTD.encode(LARGE), OLD + 1)
    put(store, "tags.txt", OTHER_SMALL, OLD)

    class BesideFlux(Disk):
        def sync(self, file: int) -> None:
            super().sync(file)
            put(store, "new", SMALL).rename(store / KEY.directory / "tags.txt")

    finding = only(checked(store, repair=True, disk=BesideFlux()))
    assert finding.mended
    assert finding.mended.startswith("left alone")
    assert (store / KEY.directory / "tags.txt").read_bytes() == SMALL


# -- left-overs


def test_left_over_stages_are_removed(store: Path) -> None:
    left = put(store, "0123456789abcdef", SMALL, key=STAGE_DIRECTORY)
    (store / STAGE_DIRECTORY / "directory").mkdir()
    kinds = {finding.path: finding.kind for finding in checked(store).kept}
    assert kinds == {f"{STAGE_DIRECTORY}/{left.name}": "left-over", f"{STAGE_DIRECTORY}/directory": "foreign"}
    assert checked(store, repair=True).remaining == 0
    assert os.listdir(store / STAGE_DIRECTORY) == ["directory"]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_hidden_list_without_a_successor_is_put_back(store: Path, codec: Codec) -> None:
    clear(store)
    put(store, f"{HIDDEN_PREFIX}tags.txt{codec.suffix}", codec.encode(LARGE))
    assert only(checked(store)).kind == "left-over"
    assert only(checked(store, repair=True)).mended == f"put back as tags.txt{codec.suffix}"
    findings = checked(store)
    assert (findings.kept, findings.lists) == ([], 2)


def test_a_hidden_list_with_a_successor_is_removed(store: Path) -> None:
    hidden = put(store, f"{HIDDEN_PREFIX}tags.txt", OTHER_SMALL)
    assert only(checked(store, repair=True)).mended == "removed"
    assert not hidden.exists()


def test_a_hidden_list_is_put_back_where_its_successor_is_corrupt(store: Path) -> None:
    clear(store)
    put(store, "tags.txt.gz", TORN_GZIP)
    put(store, f"{HIDDEN_PREFIX}tags.txt", OTHER_SMALL)
    assert {finding.kind for finding in checked(store).kept} == {"corrupt", "left-over"}
    assert checked(store, repair=True).remaining == 0
    assert (store / KEY.directory / "tags.txt").read_bytes() == OTHER_SMALL


def test_of_several_hidden_lists_the_newest_that_reads_well_is_put_back(store: Path) -> None:
    clear(store)
    put(store, f"{HIDDEN_PREFIX}tags.txt.gz", TORN_GZIP, NEW + 1)
    put(store, f"{HIDDEN_PREFIX}tags.txt.zst", ZSTD.encode(LARGE), NEW)
    put(store, f"{HIDDEN_PREFIX}tags.txt", OTHER_SMALL, OLD)
    findings = checked(store, repair=True)
    assert findings.remaining == 0
    assert os.listdir(store / KEY.directory) == ["tags.txt.zst"]
    assert (store / QUARANTINE_DIRECTORY / KEY.namespace / KEY.name / "tags.txt.gz").read_bytes() == TORN_GZIP


def test_what_a_running_writer_hides_or_stages_is_its_own_business(store: Path) -> None:
    put(store, f"{HIDDEN_PREFIX}tags.txt", OTHER_SMALL)
    put(store, "0123456789abcdef", SMALL, key=STAGE_DIRECTORY)
    writer = take(Disk(), str(store))
    try:
        assert checked(store).kept == []
        with pytest.raises(StoreHeld, match=f"pid {os.getpid()} "):
            checked(store, repair=True)
    finally:
        os.close(writer)
    assert checked(store).problems == 2


@pytest.mark.parametrize(
    ("name", "directory"),
    [("tags.txt3141592653", KEY.directory), ("tags.txt.gz27", KEY.directory), (f"{VERSION_SENTINEL}-123", ".")],
)
def test_a_temporary_file_is_removed_once_it_is_abandoned(store: Path, name: str, directory: str) -> None:
    fresh = put(store, name, SMALL, mtime_ns=int(1e9) * 4_000_000_000, key=directory)
    finding = only(checked(store, repair=True))
    assert (finding.kind, finding.is_problem) == ("left-over", False)
    old = fresh.stat().st_ctime_ns - (ABANDONED_SECONDS + 60) * SECOND
    os.utime(fresh, ns=(old, old))
    finding = only(checked(store))
    assert (finding.kind, finding.is_problem) == ("left-over", True)
    assert only(checked(store, repair=True)).mended == "removed"
    assert not fresh.exists()


# -- foreign


def _socket(path: Path) -> None:
    # By a descriptor: the address of a socket has 108 bytes.
    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


MAKERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_bytes(SMALL),
    "a directory": lambda path: path.mkdir(),
    "a symbolic link": lambda path: path.symlink_to("/etc/shadow"),
    "a socket": _socket,
    "a named pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize(
    "place",
    ["NOTES.md", "imagerepository/NOTES.md", "imagerepository/apps/_x", f"{KEY.directory}/x", f"{KEY.directory}/\n"],
)
def test_foreign_entries_are_told_and_left_at_every_level(store: Path, made: str, place: str) -> None:
    MAKERS[made](store / place)
    for repair in (False, True):
        finding = only(checked(store, repair))
        assert (finding.kind, finding.path, finding.is_problem) == ("foreign", place, False)
        assert finding.reason.startswith(made)
    assert os.path.lexists(store / place)


@pytest.mark.parametrize("made", [name for name in MAKERS if name != "a directory"])
@pytest.mark.parametrize("place", ["imagerepository/apps2", "imagerepository/apps/web"])
def test_what_has_a_good_name_and_is_no_directory_is_foreign(store: Path, made: str, place: str) -> None:
    MAKERS[made](store / place)
    assert only(checked(store)).path == place


@pytest.mark.parametrize("made", [name for name in MAKERS if name != "a file"])
@pytest.mark.parametrize("name", ["tags.txt", "tags.txt.gz", "tags.txt.zst", f"{HIDDEN_PREFIX}tags.txt"])
def test_what_stands_where_a_list_belongs_is_set_aside(store: Path, made: str, name: str) -> None:
    clear(store)
    MAKERS[made](store / KEY.directory / name)
    finding = only(checked(store))
    assert (finding.kind, finding.is_problem) == ("foreign", True)
    assert finding.reason.startswith(made)
    assert checked(store, repair=True).remaining == 0
    assert os.path.lexists(store / QUARANTINE_DIRECTORY / KEY.namespace / KEY.name / name)
    assert os.listdir(store / KEY.directory) == []


def test_a_file_where_all_namespaces_belong_is_set_aside(tmp_path: Path) -> None:
    open_store(Disk(), str(tmp_path)).close()
    (tmp_path / "imagerepository").write_bytes(b"a note")
    assert only(checked(tmp_path)).is_problem
    assert checked(tmp_path, repair=True).remaining == 0
    assert (tmp_path / QUARANTINE_DIRECTORY / "imagerepository").read_bytes() == b"a note"


def test_zstd_in_a_store_of_format_2_is_told_and_left(store: Path) -> None:
    (store / VERSION_SENTINEL).write_text("2\n")
    for repair in (False, True):
        finding = only(checked(store, repair))
        assert (finding.kind, finding.is_problem, finding.mended) == ("foreign", True, None)
        assert "convert --codec zstd" in finding.reason


def test_lost_and_found_is_no_finding(store: Path) -> None:
    (store / "lost+found").mkdir()
    assert checked(store).kept == []


def test_ten_thousand_foreign_files_are_counted(store: Path) -> None:
    for number in range(10_050):
        (store / KEY.directory / f"file-{number}").touch()
    findings = checked(store)
    assert findings.notes == 10_050
    assert len(findings.kept) == 10_000


# -- modes


def test_modes_that_let_others_write_are_mended_and_unusual_ones_noted(store: Path) -> None:
    file, directory = store / KEY.directory / "tags.txt.zst", store / "imagerepository" / "apps"
    file.chmod(0o666)
    directory.chmod(0o2775)
    problems = {finding.path: finding.reason for finding in checked(store).kept}
    assert problems == {
        "imagerepository/apps": "2775: others than its owner may write it",
        f"{KEY.directory}/tags.txt.zst": "0666: others than its owner may write it",
    }
    assert checked(store, repair=True).remaining == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(directory.stat().st_mode) == 0o2755
    note = only(checked(store))
    assert (note.kind, note.is_problem) == ("mode", False)
    assert note.reason.startswith("2 are not 0600")


# -- sentinels


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({}, "not ready: empty"),
        ({VERSION_SENTINEL: "2\n", WIPE_SENTINEL: ""}, "a wipe of it was begun"),
        ({VERSION_SENTINEL: "9\n"}, "says '9'"),
        ({"MANIFEST": "", "000001.vlog": ""}, "it holds a BadgerDB"),
        ({"thesis.tex": ""}, "thesis.tex"),
        ({"imagerepository": ""}, f"echo 2 > .*{VERSION_SENTINEL}"),
    ],
)
def test_what_is_no_ready_store_is_told_and_left(tmp_path: Path, names: dict[str, str], told: str) -> None:
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    for repair in (False, True):
        finding = only(checked(tmp_path, repair))
        assert (finding.kind, finding.is_problem) == ("sentinel", True)
        assert re.search(told, finding.reason)
    assert tree(tmp_path) == before


def test_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(StoreRefused, match=name):
            checked(tmp_path / name)


# -- whatever a store holds


NAMES = [prefix + "tags.txt" + codec.suffix for prefix in ("", HIDDEN_PREFIX) for codec in CODECS]
STORED = {
    "tags.txt": [SMALL, LARGE, b"", b"bad tag\n", b"\0\0"],
    "tags.txt.gz": [gzip.compress(SMALL), gzip.compress(LARGE), TORN_GZIP, b""],
    "tags.txt.zst": [ZSTD.encode(OTHER_SMALL), ZSTD.encode(LARGE), TORN_ZSTD, b""],
}
litter = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6)


@given(litter, st.sampled_from([2, 3]))
def test_a_repair_loses_no_list_and_a_second_one_finds_nothing_to_mend(
    files: dict[str, tuple[int, int]], format_: int
) -> None:
    with fast_directory() as path:
        open_store(Disk(), str(path), format_).close()
        for name, (which, age) in files.items():
            put(path, name, STORED[name.removeprefix(HIDDEN_PREFIX)][which], OLD + age * SECOND)
        before = everything(path)
        first = checked(path, repair=True)
        after = everything(path)
        gone = before - after
        removed = sum(finding.mended == "removed" for finding in first.kept)
        # Only what a valid list has replaced may go.
        assert sum(gone.values()) == removed
        assert not after - before
        assert set(before) - {b""} <= set(after) | set(gone)
        if removed:
            assert first.lists == 1
        second = checked(path, repair=True)
        assert second.mended == 0
        assert {finding.kind for finding in second.kept if finding.is_problem} <= {"invalid", "foreign"}


# -- cut short


def _litter(disk: Disk) -> None:
    """Every kind of damage that a repair mends, by the calls of `disk`, made durable."""
    store = open_store(disk, "/")
    store.replace(NEIGHBOUR, SMALL)
    store.make_repository(KEY)
    with store.opened(KEY.namespace, KEY.name) as directory:
        for name, stored, mtime_ns in (
            ("tags.txt.gz", TORN_GZIP, NEW),
            ("tags.txt.zst", ZSTD.encode(LARGE), NEW - SECOND),
            ("tags.txt", OTHER_SMALL, OLD),
            (f"{HIDDEN_PREFIX}tags.txt", SMALL, OLD - SECOND),
            ("tags.txt1", b"half", OLD),
        ):
            _write(disk, directory, name, stored, mtime_ns)
    with store.opened(NEIGHBOUR.namespace, NEIGHBOUR.name) as directory:
        file = disk.open_file(directory, "tags.txt")
        disk.set_mode(file, 0o666)
        disk.close(file)
    disk.close(store.stages.create()[1])
    disk.sync_filesystem(store.root)
    store.close()


def _write(disk: Disk, directory: int, name: str, stored: bytes, mtime_ns: int) -> None:
    file = disk.create(directory, name)
    disk.write(file, stored)
    disk.set_mtime(file, mtime_ns)
    disk.close(file)


def _readable(disk: Disk) -> list[bytes]:
    """What a store that is opened now, and repaired to the end, shows of KEY."""
    findings = checked(Path("/"), repair=True, disk=disk)
    assert findings.remaining == 0, findings.kept
    store = open_store(disk, "/")
    try:
        return [store.read(KEY), store.read(NEIGHBOUR)]
    finally:
        store.close()


def _calls_of_a_repair() -> list[str]:
    disk = FaultyDisk(SimulatedDisk())
    _litter(disk)
    disk.arm(None)
    findings = checked(Path("/"), repair=True, disk=disk)
    assert findings.remaining == 0
    assert findings.mended == 6, findings.kept
    return list(disk.calls)


CALLS = _calls_of_a_repair()


@pytest.mark.parametrize("wrong", [Wrong.EIO, Wrong.CUT])
@pytest.mark.parametrize("at", range(len(CALLS)), ids=lambda at: f"{at}-{CALLS[at]}")
def test_a_repair_that_fails_or_is_cut_short_is_finished_by_the_next(at: int, wrong: Wrong) -> None:
    disk = FaultyDisk(inner := SimulatedDisk())
    _litter(disk)
    disk.arm(Fault(at, wrong))
    try:
        checked(Path("/"), repair=True, disk=disk)
    except (OSError, PowerCut):
        pass
    if wrong is Wrong.CUT:
        for label, survivor in inner.survivors():
            assert _readable(survivor) == [LARGE, SMALL], label
    else:
        assert inner.open_descriptors == 0
        assert _readable(inner) == [LARGE, SMALL]


def test_what_a_repair_has_mended_outlives_a_power_loss() -> None:
    inner = SimulatedDisk()
    _litter(inner)
    mended = checked(Path("/"), repair=True, disk=inner)
    assert mended.remaining == 0
    for label, survivor in inner.survivors():
        again = checked(Path("/"), disk=survivor)
        # A mode is not what `survivors` takes back.
        assert [finding for finding in again.kept if finding.is_problem] == [], label
        assert [finding.kind for finding in again.kept] == ["mode", "quarantine"], label
