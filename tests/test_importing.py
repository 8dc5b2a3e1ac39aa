"""Import: every layout and archive, what is refused and why, cut short at each call, killed in the middle."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tagfs import sources
from tagfs.check import Check
from tagfs.codec import GZIP, ZSTD
from tagfs.convert import Convert
from tagfs.disk import Disk
from tagfs.errors import CommitUncertain, SettingRefused, StoreHeld, StoreRefused, StoreWaiting
from tagfs.holder import take
from tagfs.importing import Import, Imported, Refused
from tagfs.names import BASE, STAGE_DIRECTORY, VERSION_SENTINEL, RepositoryKey
from tagfs.sources import SourceCut
from tests.support.daemon import eventually
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import fast_directory
from tests.support.rights import as_nobody, belongs_to_nobody
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import KEY, LARGE, NEIGHBOUR, OTHER_LARGE, SMALL, STRANGER, THRESHOLD, contents, open_store

LIMIT = 1 << 20
MTIME = 1_600_000_000
LISTS = {KEY: LARGE, NEIGHBOUR: SMALL, STRANGER: OTHER_LARGE, RepositoryKey("apps", "none.at-all"): b""}
EXPECTED = {str(key): plain for key, plain in LISTS.items()}


def imported(
    store: Path | str, source: Path | str, stdin: bytes | None = None, disk: Disk | None = None, **settings: object
) -> Imported:
    importing = importer(store, source, disk, **settings)
    try:
        for _ in importing.run(None if stdin is None else io.BufferedReader(io.BytesIO(stdin))):
            pass
    finally:
        importing.close()
    return importing.imported


def importer(store: Path | str, source: Path | str, disk: Disk | None = None, **settings: object) -> Import:
    given = {"codec": "auto", "threshold": THRESHOLD, "is_dry": False, **settings}
    return Import(
        str(store), str(source), str(given["codec"]), int(str(given["threshold"])), LIMIT, bool(given["is_dry"]), disk
    )


def shown(disk: Disk, path: Path | str = "/") -> dict[str, bytes]:
    store = open_store(disk, str(path))
    try:
        return contents(store)
    finally:
        store.close()


def problems(path: Path) -> list[str]:
    check = Check(str(path), LIMIT, False, settling_seconds=0)
    try:
        for _ in check.run():
            pass
    finally:
        check.close()
    return [finding.path for finding in check.findings.kept if finding.is_problem]


def as_shown(path: Path, base: str = BASE) -> Path:
    for key, plain in LISTS.items():
        file = path / base / key.namespace / key.name / "tags.txt"
        file.parent.mkdir(parents=True)
        file.write_bytes(plain)
        os.utime(file, (MTIME, MTIME))
    return path


def one_file_each(path: Path) -> Path:
    for key, plain in LISTS.items():
        file = path / key.namespace / f"{key.name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(plain)
        os.utime(file, (MTIME, MTIME))
    return path


def as_stored(path: Path) -> Path:
    as_shown(path)
    (path / VERSION_SENTINEL).write_text("2\n")
    for key, codec in ((KEY, GZIP), (STRANGER, ZSTD)):
        file = path / key.directory / "tags.txt"
        stale = file.with_name("tags.txt" + codec.suffix)
        stale.write_bytes(codec.encode(LISTS[key]))
        os.utime(stale, (MTIME, MTIME))
        file.write_bytes(b"older\n")
        os.utime(file, (MTIME - 1, MTIME - 1))
    return path


LAYOUTS = [as_shown, lambda path: as_shown(path, "."), one_file_each, as_stored]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["shown", "without base", "one file each", "stored"])
def test_a_tree_is_imported_with_its_times_and_passed_over_the_next_time(
    tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    source = layout(tmp_path / "source")
    done = imported(tmp_path / "store", source)
    assert (done.added, done.replaced, done.unchanged, done.refused, done.format) == (4, 0, 0, [], 3)
    assert shown(Disk(), tmp_path / "store") == EXPECTED
    assert problems(tmp_path / "store") == []
    assert not (tmp_path / "store" / STAGE_DIRECTORY).exists()
    store = open_store(Disk(), str(tmp_path / "store"))
    before = [store.examine(key) for key in LISTS]
    assert {version.mtime_ns for version in before} == {MTIME * 10**9}
    done = imported(tmp_path / "store", source)
    assert (done.added, done.replaced, done.unchanged) == (0, 0, 4)
    assert [store.examine(key) for key in LISTS] == before
    store.close()


def archive(source: Path, above: str = "", end: bytes = b"") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.add(source, above or ".")
    return made.getvalue()


def in_frames(plain: bytes) -> bytes:
    """zstd in several frames, as `zstd -T0` and a concatenation leave it."""
    return b"".join(ZSTD.encode(plain[at : at + 65536]) for at in range(0, len(plain), 65536))


PACKED: dict[str, Callable[[bytes], bytes]] = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": in_frames}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("is_pipe", [True, False])
@pytest.mark.parametrize("above", ["", "srv/mnt/tags"])
def test_an_archive_is_imported_from_a_file_or_a_pipe(tmp_path: Path, packed: str, is_pipe: bool, above: str) -> None:
    data = PACKED[packed](archive(as_shown(tmp_path / "source"), above))
    (tmp_path / "file").write_bytes(data)
    done = imported(tmp_path / "store", "-" if is_pipe else tmp_path / "file", data if is_pipe else None)
    assert (done.added, done.refused_count) == (4, 0)
    assert shown(Disk(), tmp_path / "store") == EXPECTED


@pytest.mark.parametrize("packed", PACKED)
def test_what_came_before_an_archives_cut_is_there(tmp_path: Path, packed: str) -> None:
    lists = [b"".join(b"%d-%d\n" % (number, serial * 7919 % 10007) for serial in range(2000)) for number in range(20)]
    for number, plain in enumerate(lists):
        (tmp_path / "source" / "team").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "team" / f"app{number:02}.txt").write_bytes(plain)
    whole = archive(tmp_path / "source")
    data = PACKED[packed](whole)
    with pytest.raises(SourceCut, match="cut short"):
        imported(tmp_path / "store", "-", data[: len(data) // 2])
    found = shown(Disk(), tmp_path / "store")
    assert 0 < len(found) < 20
    assert set(found.values()) <= set(lists)
    assert imported(tmp_path / "store", "-", data).unchanged == len(found)


@pytest.mark.parametrize("packed", ["tar.gz", "tar.zst"])
def test_an_archive_that_is_cut_before_its_first_list_is_told_too(tmp_path: Path, packed: str) -> None:
    data = PACKED[packed](archive(as_shown(tmp_path / "source")))
    for size in (20, len(data) // 2, len(data) - 1):
        with pytest.raises(SourceCut, match="cut short"):
            imported(tmp_path / "store", "-", data[:size])


@pytest.mark.parametrize("size", [4 * 512, 4 * 512 + 1, 5 * 512 - 1, 5 * 512, 40 * 512])
def test_an_archive_that_is_cut_at_a_header_is_told_too(tmp_path: Path, size: int) -> None:
    """Where lists are small, half of its bytes are headers."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for number in range(20):
            member = tarfile.TarInfo(f"team/app{number:02}.txt")
            member.size = len(SMALL)
            tar.addfile(member, io.BytesIO(SMALL))
    with pytest.raises(SourceCut, match="cut short"):
        imported(tmp_path / "store", "-", made.getvalue()[:size])
    assert len(shown(Disk(), tmp_path / "store")) == size // 1024
    assert imported(tmp_path / "store", "-", made.getvalue()[: 41 * 512]).added == 20 - size // 1024


def test_the_last_of_an_archives_lists_of_one_name_counts(tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for plain in (SMALL, LARGE, LARGE):
            member = tarfile.TarInfo("team/app.txt")
            member.size = len(plain)
            tar.addfile(member, io.BytesIO(plain))
    done = imported(tmp_path / "store", "-", made.getvalue())
    assert (done.added, done.replaced, done.unchanged) == (1, 1, 1)
    assert shown(Disk(), tmp_path / "store") == {"team/app": LARGE}


def test_what_is_no_list_is_refused_with_its_line_and_costs_the_others_nothing(tmp_path: Path) -> None:
    source = as_shown(tmp_path / "source")
    bad = {
        "apps/spaced": (b"v1\nv 2\n", 2, "a space"),
        "apps/cut": (b"v1\nv2", 2, "no newline"),
        "apps/Upper": (b"v1\n", None, "is no repository"),
        "apps/huge": (b"a\n" * LIMIT, None, "--max-list-size"),
    }
    for key, (plain, _, _) in bad.items():
        (source / BASE / key).mkdir()
        (source / BASE / key / "tags.txt").write_bytes(plain)
    torn = source / BASE / "apps" / "torn"
    torn.mkdir()
    (torn / "tags.txt.gz").write_bytes(GZIP.encode(LARGE)[:-9])
    (torn / "notes.md").write_text("no list")
    (source / BASE / "apps" / "link").mkdir()
    (source / BASE / "apps" / "link" / "tags.txt").symlink_to("/etc/passwd")
    done = imported(tmp_path / "store", source)
    assert shown(Disk(), tmp_path / "store") == EXPECTED
    refused = {Path(one.path).parent.name: one for one in done.refused}
    assert done.refused_count == 6
    for key, (_, line, reason) in bad.items():
        one = refused[key.partition("/")[2]]
        assert one.line == line
        assert reason in one.reason
    assert "truncated" in refused["torn"].reason
    assert "a link" in refused["link"].reason
    assert [Path(path).name for path in done.other] == ["notes.md"]


@pytest.mark.parametrize("packed", [None, "tar", "tar.gz"])
def test_a_directory_in_the_place_of_a_list_is_told_and_costs_no_list(tmp_path: Path, packed: str | None) -> None:
    source = as_shown(tmp_path / "source")
    (source / BASE / "apps" / "odd" / "tags.txt").mkdir(parents=True)
    (source / BASE / "apps" / "odd" / "tags.txt.gz").write_bytes(GZIP.encode(LARGE))
    named = source / BASE / "apps" / "tags.txt"  # a repository may have that name
    named.mkdir()
    (named / "tags.txt").write_bytes(SMALL)
    if packed is None:
        done = imported(tmp_path / "store", source)
    else:
        done = imported(tmp_path / "store", "-", PACKED[packed](archive(source)))
    assert [one.path.partition(f"{BASE}/")[2] for one in done.refused] == ["apps/odd/tags.txt"]
    assert "a directory" in done.refused[0].reason
    assert shown(Disk(), tmp_path / "store") == {**EXPECTED, "apps/odd": LARGE, "apps/tags.txt": SMALL}


def made_archive(*members: tuple[str, dict[str, str], bytes]) -> bytes:
    """Of (name, further headers, type)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers, kind in members:
            member = tarfile.TarInfo(name)
            member.pax_headers, member.type, member.linkname = headers, kind, "/etc/passwd"
            member.size = len(SMALL) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(SMALL) if member.size else None)
    return made.getvalue()


def test_no_member_of_an_archive_leaves_the_store_or_leads_out_of_it(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    data = made_archive(
        ("../../imagerepository/team/above/tags.txt", {}, tarfile.REGTYPE),
        ("/team/root/tags.txt", {}, tarfile.REGTYPE),
        ("team/../tags.txt", {}, tarfile.REGTYPE),
        *((f"team/kind{number}/tags.txt", {}, kind) for number, kind in enumerate(kinds)),
        ("team/whole/tags.txt", {}, tarfile.REGTYPE),
    )
    done = imported(tmp_path / "in" / "store", "-", data)
    assert done.refused_count == 1 + len(kinds)
    assert set(shown(Disk(), tmp_path / "in" / "store")) == {"team/above", "team/root", "team/whole"}
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["store"]


@pytest.mark.parametrize("mtime", ["nan", "inf", "-inf", "1e300", "1e30", "-1e12"])
def test_a_time_that_is_none_costs_no_list(tmp_path: Path, mtime: str) -> None:
    data = made_archive(("team/app.txt", {"mtime": mtime}, tarfile.REGTYPE), ("team/next.txt", {}, tarfile.REGTYPE))
    assert imported(tmp_path / "store", "-", data).added == 2


LIES = {
    "a negative size": {"size": "-1"},
    "a size without an end": {"size": "9" * 23},
    "holes that are no numbers": {"GNU.sparse.map": "x,y", "GNU.sparse.size": "3"},
    "a size that is no number": {"GNU.sparse.size": "zz"},
    "holes that are not told": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "3"},
    "a header as large as memory": {"comment": "a" * (2 << 20)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_told_and_what_came_before_is_there(tmp_path: Path, lie: str) -> None:
    data = made_archive(("team/app.txt", {}, tarfile.REGTYPE), ("team/next.txt", LIES[lie], tarfile.REGTYPE))
    with pytest.raises(SourceCut, match="damaged"):
        imported(tmp_path / "store", "-", data)
    assert shown(Disk(), tmp_path / "store") == {"team/app": SMALL}


FLIPPED: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": ZSTD.encode,
}


@pytest.mark.parametrize("packed", FLIPPED)
def test_an_archive_with_a_flipped_bit_is_told(tmp_path: Path, packed: str) -> None:
    """Also where it is in what follows the last list, as the check sum of gzip does."""
    data = FLIPPED[packed](made_archive(*((f"team/app{number}.txt", {}, tarfile.REGTYPE) for number in range(3))))
    for at in (len(data) // 2, len(data) - 6):
        flipped = bytearray(data)
        flipped[at] ^= 8
        with pytest.raises((SourceCut, SettingRefused), match=r"damaged|neither"):
            for entry in sources.entries("-", io.BufferedReader(io.BytesIO(flipped))):
                assert entry.read is not None
                entry.read()


def test_lists_that_the_source_does_not_have_stay(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store(Disk(), str(tmp_path / "store"))
    store.replace(RepositoryKey("mine", "own"), SMALL)
    store.replace(KEY, SMALL)
    store.close()
    done = imported(tmp_path / "store", as_shown(tmp_path / "source"))
    assert (done.added, done.replaced) == (3, 1)
    assert shown(Disk(), tmp_path / "store") == {**EXPECTED, "mine/own": SMALL}


@pytest.mark.parametrize(("codec", "format_", "suffix"), [("gzip", 2, ".gz"), ("zstd", 3, ".zst"), ("auto", 3, ".zst")])
def test_a_new_store_has_the_codec_that_was_asked_for(tmp_path: Path, codec: str, format_: int, suffix: str) -> None:
    source = as_shown(tmp_path / "source")
    assert imported(tmp_path / "store", source, codec=codec).format == format_
    assert (tmp_path / "store" / VERSION_SENTINEL).read_text() == f"{format_}\n"
    assert os.listdir(tmp_path / "store" / KEY.directory) == [f"tags.txt{suffix}"]
    assert os.listdir(tmp_path / "store" / NEIGHBOUR.directory) == ["tags.txt"]
    # Stored otherwise is not as it would be now.
    assert imported(tmp_path / "store", source, codec=codec, threshold=1).replaced == 1


def test_a_store_of_format_2_stays_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / VERSION_SENTINEL).write_text("2\n")
    assert imported(tmp_path / "store", as_shown(tmp_path / "source")).format == 2
    assert os.listdir(tmp_path / "store" / KEY.directory) == ["tags.txt.gz"]


def test_a_dry_run_writes_nothing_and_tells_the_same(tmp_path: Path) -> None:
    source = as_shown(tmp_path / "source")
    done = imported(tmp_path / "store", source, is_dry=True)
    assert (done.added, done.is_dry) == (4, True)
    assert not (tmp_path / "store").exists()
    imported(tmp_path / "store", source)
    (source / KEY.path).write_bytes(SMALL)
    (source / NEIGHBOUR.path).write_bytes(b"not a list")
    holder = take(Disk(), str(tmp_path / "store"))  # a mount may go on
    done = imported(tmp_path / "store", source, is_dry=True)
    os.close(holder)
    assert (done.added, done.replaced, done.unchanged, done.refused_count) == (0, 1, 2, 1)
    assert shown(Disk(), tmp_path / "store") == EXPECTED


def test_a_store_that_is_held_or_none_is_not_touched(tmp_path: Path) -> None:
    source = as_shown(tmp_path / "source")
    imported(tmp_path / "store", source)
    holder = take(Disk(), str(tmp_path / "store"))
    with pytest.raises(StoreHeld):
        imported(tmp_path / "store", source)
    os.close(holder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    (tmp_path / "wiping").mkdir()
    (tmp_path / "wiping" / ".storage-wipe-in-progress").touch()
    for name, error in (("home", StoreRefused), ("wiping", StoreWaiting)):
        for is_dry in (False, True):
            with pytest.raises(error):
                imported(tmp_path / name, source, is_dry=is_dry)
    assert (tmp_path / "home" / "letter").read_text() == "dear"
    with pytest.raises(StoreRefused, match="is no directory"):
        imported(tmp_path / "home" / "letter", source)


class _Failing(Disk):
    """It has lost one directory."""

    def open_below(self, directory: int, path: str) -> int:
        raise OSError(errno.ENOSYS, "a kernel without openat2")

    def open_dir(self, directory: int, name: str) -> int:
        if name == KEY.name:
            raise OSError(errno.EIO, "Input/output error", name)
        return super().open_dir(directory, name)


def test_an_error_of_the_disk_names_the_whole_path(tmp_path: Path) -> None:
    store = tmp_path / "store"
    source = as_shown(tmp_path / "source")
    imported(store, source)
    with pytest.raises(OSError, match="Input/output error") as importing:
        imported(store, source, disk=_Failing())
    converting = Convert(str(store), "gzip", 0, LIMIT, _Failing())
    with pytest.raises(OSError, match="Input/output error") as convert, closing(converting):
        list(converting.run())
    assert importing.value.filename == convert.value.filename == f"{store}/{KEY.directory}"


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_what_may_not_be_entered_is_named_and_costs_the_others_nothing() -> None:
    with fast_directory() as path:
        store, source = path / "store", as_shown(path / "source")
        store.mkdir()
        made = open_store(Disk(), str(store))
        made.replace(KEY, OTHER_LARGE)
        made.replace(NEIGHBOUR, LARGE)
        made.close()
        belongs_to_nobody(path)
        modes = {source / STRANGER.directory: 0o000, store / KEY.directory: 0o500, store / NEIGHBOUR.directory: 0o000}
        for directory, mode in modes.items():
            directory.chmod(mode)

        def act() -> None:
            done = imported(store, source)
            assert {(one.path, one.reason) for one in done.refused} == {
                (str(directory), "Permission denied") for directory in modes
            }
            assert (done.refused_count, done.added, done.replaced, done.unchanged) == (3, 1, 0, 0)

        assert as_nobody(act) == 0
        for directory in modes:
            directory.chmod(0o700)
        assert shown(Disk(), store) == {str(KEY): OTHER_LARGE, str(NEIGHBOUR): LARGE, "apps/none.at-all": b""}
        assert not (store / STAGE_DIRECTORY).exists()


def test_a_source_without_a_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no archive")
    for name, told in (("none", "is not there"), ("empty", "has no list"), ("text", "neither a directory nor a tar")):
        with pytest.raises(SettingRefused, match=told):
            imported(tmp_path / "store", tmp_path / name)


# -- cut short


def _prepared() -> tuple[FaultyDisk, SimulatedDisk]:
    disk = FaultyDisk(inner := SimulatedDisk())
    store = open_store(disk, "/")
    store.replace(KEY, SMALL)
    store.close()
    return disk, inner


def _cases(source: Path) -> Iterator[tuple[int, Wrong]]:
    disk, _ = _prepared()
    disk.arm(None)
    imported("/", source, disk=disk)
    for at, call in enumerate(list(disk.calls)):
        for wrong in (Wrong.EIO, Wrong.CUT, *((Wrong.ENOSPC, Wrong.TORN_CUT) if call == "write" else ())):
            yield at, wrong


def test_an_import_that_fails_or_is_cut_short_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    source = as_shown(tmp_path)
    cases = list(_cases(source))
    assert len(cases) > 100
    for at, wrong in cases:
        disk, inner = _prepared()
        disk.arm(Fault(at, wrong))
        try:
            done = imported("/", source, disk=disk)
        except (OSError, PowerCut, StoreWaiting, CommitUncertain):
            done = None
        survivors = list(inner.survivors()) if wrong in (Wrong.CUT, Wrong.TORN_CUT) else [("", inner)]
        for label, survivor in survivors:
            found = shown(survivor)
            for key, plain in EXPECTED.items():
                old = SMALL if key == str(KEY) else None
                assert found.get(key, old) in (plain, old), (at, wrong, label, key)
            if done is not None and not done.refused_count:
                assert found == EXPECTED, (at, wrong, label)
            assert imported("/", source, disk=survivor).refused_count == 0
            assert shown(survivor) == EXPECTED, (at, wrong, label)
            root = survivor.open_root("/")
            assert STAGE_DIRECTORY not in dict(survivor.names(root)), (at, wrong, label)


def test_a_finished_import_outlives_a_power_loss(tmp_path: Path) -> None:
    source = as_shown(tmp_path)
    _, inner = _prepared()
    imported("/", source, disk=inner)
    for label, survivor in inner.survivors():
        assert shown(survivor) == EXPECTED, label


def test_what_was_there_and_not_durable_is_durable_when_it_was_passed_over(tmp_path: Path) -> None:
    source = as_shown(tmp_path)

    class Unsynced(SimulatedDisk):
        is_on = False

        def sync_filesystem(self, directory: int) -> None:
            if self.is_on:
                super().sync_filesystem(directory)

    disk = Unsynced()
    imported("/", source, disk=disk)
    disk.is_on = True
    assert imported("/", source, disk=disk).unchanged == len(LISTS)
    for label, survivor in disk.survivors():
        assert shown(survivor) == EXPECTED, label


COUNT = 1500


@pytest.mark.slow
def test_a_killed_import_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    lists = {f"app{number}": b"v1.%d.0\n" % number * (1 + number % 900) for number in range(COUNT)}
    (tmp_path / "source" / "team").mkdir(parents=True)
    for name, plain in lists.items():
        (tmp_path / "source" / "team" / f"{name}.txt").write_bytes(plain)
    store = tmp_path / "store"
    cut = 0
    for goal in (1, 200, 700):
        command = [sys.executable, "-m", "tagfs", "import", str(store), str(tmp_path / "source")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        base = store / BASE / "team"
        eventually(
            lambda: process.poll() is not None or (base.exists() and len(os.listdir(base)) >= goal),  # noqa: B023
            "lists to arrive",
        )
        process.send_signal(signal.SIGKILL)
        cut += process.wait() == -signal.SIGKILL
        found = shown(Disk(), store)
        assert all(lists[key.partition("/")[2]] == plain for key, plain in found.items())
    assert cut
    told = json.loads(
        subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True).stdout  # type: ignore[possibly-undefined]
    )
    assert told["added"] + told["unchanged"] == COUNT
    assert told["unchanged"] > 0
    assert {key.partition("/")[2]: plain for key, plain in shown(Disk(), store).items()} == lists
    assert not (store / STAGE_DIRECTORY).exists()
    assert problems(store) == []


def test_the_command_tells_what_it_did_and_ends_with_6_for_what_it_refused(tmp_path: Path) -> None:
    source = as_shown(tmp_path / "source")
    (source / BASE / "apps" / "bad").mkdir()
    (source / BASE / "apps" / "bad" / "tags.txt").write_bytes(b"v1\n\nv2\n")
    command = [sys.executable, "-m", "tagfs", "import", str(tmp_path / "store"), "-"]
    ended = subprocess.run(command, input=archive(source), capture_output=True)
    assert ended.returncode == 6
    lines = ended.stdout.decode().splitlines()
    assert f"refused\t./{BASE}/apps/bad/tags.txt\t2\ta blank line" in lines
    assert {"added: 4", "replaced: 0", "unchanged: 0", "refused: 1", "source: -"} <= set(lines)
    ended = subprocess.run([*command[:-1], str(source), "--json", "--dry-run"], capture_output=True)
    assert ended.returncode == 6
    told = json.loads(ended.stdout)
    assert (told["unchanged"], told["dry_run"]) == (4, True)
    assert told["refused"] == [{"path": f"{source}/{BASE}/apps/bad/tags.txt", "line": 2, "reason": "a blank line"}]


def test_only_so_many_refusals_are_kept(tmp_path: Path) -> None:
    (tmp_path / "source" / "team").mkdir(parents=True)
    for number in range(150):
        (tmp_path / "source" / "team" / f"app{number}.txt").write_bytes(b"?\n")
    done = imported(tmp_path / "store", tmp_path / "source")
    assert done.refused_count == 150
    assert len(done.refused) == 100
    assert isinstance(done.refused[0], Refused)
