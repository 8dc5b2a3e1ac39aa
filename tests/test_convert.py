"""Convert: both ways, keeping every byte and time, cut short at each call, readable at each step."""

import gzip
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tagfs import sentinel, variants
from tagfs.bulk import GROUP
from tagfs.check import Check
from tagfs.codec import CODECS
from tagfs.convert import Conversion, Convert
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import ListCorrupt, StoreHeld, StoreRefused, StoreWaiting
from tagfs.holder import take
from tagfs.names import HIDDEN_PREFIX, STAGE_DIRECTORY, VERSION_SENTINEL, RepositoryKey
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import fast_directory
from tests.support.rights import as_nobody, belongs_to_nobody
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import (
    KEY,
    LARGE,
    NEIGHBOUR,
    OTHER_LARGE,
    SMALL,
    STRANGER,
    THRESHOLD,
    Contents,
    open_store,
    policy_of,
    write_natively,
)

LIMIT = 1 << 20
EXAMPLES = Path(__file__).parent.parent / "examples" / "official-images"
MTIME = 1_600_000_000_123_456_789
FORMAT_OF = {"gzip": 2, "zstd": 3}
LISTS = {KEY: LARGE, NEIGHBOUR: SMALL, STRANGER: OTHER_LARGE, RepositoryKey("apps", "none"): b""}
EXPECTED: Contents = {str(key): plain for key, plain in LISTS.items()}


def converted(path: Path | str, codec: str, disk: Disk | None = None, threshold: int = THRESHOLD) -> Conversion:
    convert = Convert(str(path), codec, threshold, LIMIT, disk)
    try:
        for _ in convert.run():
            pass
    finally:
        convert.close()
    return convert.conversion


def fill(disk: Disk, path: str, format_: int) -> None:
    store = open_store(disk, path, format_)
    for number, (key, plain) in enumerate(LISTS.items()):
        store.replace(key, plain, MTIME + number)
    store.close()


def shown(disk: Disk, path: str = "/") -> Contents:
    """What a reader that comes now sees."""
    root = disk.open_root(path)
    format_ = sentinel.require_ready(disk, root, path)
    store = DirectoryStore(disk, root, format_, policy_of(format_))
    try:
        return {str(key): store.read(key) for key in store.scan()}
    finally:
        store.close()


def times(disk: Disk, path: str = "/") -> list[int]:
    store = open_store(disk, path)
    try:
        return [store.examine(key).mtime_ns for key in LISTS]
    finally:
        store.close()


def problems(disk: Disk, path: str = "/") -> list[str]:
    check = Check(path, LIMIT, False, settling_seconds=0, disk=disk)
    try:
        for _ in check.run():
            pass
    finally:
        check.close()
    return [finding.path for finding in check.findings.kept if finding.is_problem]


def variants_in(path: Path) -> dict[str, int]:
    names = [file.name for file in (path / "imagerepository").rglob("*") if file.is_file()]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize(("before", "codec"), [(2, "zstd"), (3, "gzip"), (2, "gzip"), (3, "zstd")])
def test_a_conversion_keeps_every_byte_and_time(tmp_path: Path, before: int, codec: str) -> None:
    fill(Disk(), str(tmp_path), before)
    done = converted(tmp_path, codec)
    assert done.format == FORMAT_OF[codec]
    assert (tmp_path / VERSION_SENTINEL).read_text() == f"{FORMAT_OF[codec]}\n"
    assert (done.converted, done.unchanged) == ((2, 2) if before != FORMAT_OF[codec] else (0, 4))
    suffix = {"gzip": "gz", "zstd": "zst"}[codec]
    assert variants_in(tmp_path) == {"tags.txt": 2, f"tags.txt.{suffix}": 2}
    assert shown(Disk(), str(tmp_path)) == EXPECTED
    assert times(Disk(), str(tmp_path)) == [MTIME + number for number in range(len(LISTS))]
    assert not (tmp_path / STAGE_DIRECTORY).exists()
    assert problems(Disk(), str(tmp_path)) == []


def test_there_and_back_again_with_real_lists(tmp_path: Path) -> None:
    lists = {path.stem: path.read_bytes() for path in sorted(EXAMPLES.glob("*.txt"))}
    assert len(lists) > GROUP, "more than one group"
    store = open_store(Disk(), str(tmp_path), 3)
    for number, (name, plain) in enumerate(lists.items()):
        store.replace(RepositoryKey("docker", name), plain, MTIME + number)
    store.close()
    for codec in ("gzip", "zstd"):
        assert converted(tmp_path, codec).converted > GROUP // 2
        store = open_store(Disk(), str(tmp_path))
        for number, (name, plain) in enumerate(lists.items()):
            assert store.read(RepositoryKey("docker", name)) == plain
            assert store.examine(RepositoryKey("docker", name)).mtime_ns == MTIME + number
        store.close()
        assert converted(tmp_path, codec).converted == 0


def test_a_store_of_fluxs_is_converted_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / VERSION_SENTINEL).write_text("2\n")
    write_natively(tmp_path, KEY, LARGE, compressed=True)
    write_natively(tmp_path, NEIGHBOUR, OTHER_LARGE, compressed=False)
    expected = {str(KEY): LARGE, str(NEIGHBOUR): OTHER_LARGE}
    for codec in ("zstd", "gzip"):
        converted(tmp_path, codec)
        assert shown(Disk(), str(tmp_path)) == expected
    assert gzip.decompress((tmp_path / KEY.directory / "tags.txt.gz").read_bytes()) == LARGE


def test_lists_below_the_threshold_become_plain_and_those_above_compressed(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 3)
    converted(tmp_path, "zstd", threshold=1 << 20)
    assert variants_in(tmp_path) == {"tags.txt": 4}
    converted(tmp_path, "zstd", threshold=1)
    assert variants_in(tmp_path) == {"tags.txt": 1, "tags.txt.zst": 3}
    assert shown(Disk(), str(tmp_path)) == EXPECTED


def test_a_stale_variant_goes_and_the_newer_one_stays(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 2)
    write_natively(tmp_path, KEY, OTHER_LARGE, compressed=False, mtime_ns=MTIME + 10)
    converted(tmp_path, "zstd")
    assert os.listdir(tmp_path / KEY.directory) == ["tags.txt.zst"]
    assert shown(Disk(), str(tmp_path)) == {**EXPECTED, str(KEY): OTHER_LARGE}
    assert times(Disk(), str(tmp_path))[0] == MTIME + 10


def test_a_hidden_list_is_put_back_and_converted(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 3)
    directory = tmp_path / KEY.directory
    (directory / "tags.txt.zst").rename(directory / f"{HIDDEN_PREFIX}tags.txt.zst")
    converted(tmp_path, "gzip")
    assert os.listdir(directory) == ["tags.txt.gz"]
    assert shown(Disk(), str(tmp_path)) == EXPECTED


def test_stages_of_a_writer_that_is_gone_are_removed(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 3)
    (tmp_path / STAGE_DIRECTORY).mkdir()
    (tmp_path / STAGE_DIRECTORY / "0123456789abcdef").write_bytes(b"half")
    converted(tmp_path, "zstd")
    assert not (tmp_path / STAGE_DIRECTORY).exists()


def test_a_corrupt_list_keeps_the_store_from_going_down_and_not_from_going_up(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 3)
    corrupt = tmp_path / KEY.directory / "tags.txt.zst"
    corrupt.write_bytes(b"junk")
    with pytest.raises(ListCorrupt, match=r"not zstd.*stays at format 3.*tagfs check"):
        converted(tmp_path, "gzip")
    assert (tmp_path / VERSION_SENTINEL).read_text() == "3\n"
    assert corrupt.read_bytes() == b"junk"
    assert (tmp_path / STRANGER.directory / "tags.txt.gz").exists(), "the others are converted"
    done = converted(tmp_path, "zstd")
    assert done.unreadable == [(f"{KEY.directory}/tags.txt.zst", "not zstd, or truncated")]
    assert done.unreadable_count == 1
    corrupt.unlink()
    assert converted(tmp_path, "gzip").format == 2


def test_a_stale_zstd_variant_beside_a_corrupt_winner_keeps_the_store_from_going_down(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 3)
    (tmp_path / KEY.directory / "tags.txt.gz").write_bytes(b"junk")
    with pytest.raises(ListCorrupt, match=r"tags\.txt\.zst"):
        converted(tmp_path, "gzip")
    assert (tmp_path / KEY.directory / "tags.txt.zst").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
@pytest.mark.parametrize(("before", "codec"), [(2, "zstd"), (3, "gzip")])
def test_what_may_not_be_entered_is_named_and_costs_the_others_nothing(before: int, codec: str) -> None:
    with fast_directory() as path:
        fill(Disk(), str(path), before)
        belongs_to_nobody(path)
        closed, kept = path / NEIGHBOUR.directory, path / KEY.directory
        closed.chmod(0o000)
        kept.chmod(0o500)

        def act() -> None:
            with closing(Convert(str(path), codec, THRESHOLD, LIMIT)) as convert:
                if codec == "gzip":
                    with pytest.raises(ListCorrupt, match=r"Permission denied \(1 more are left\): .* at format 3"):
                        list(convert.run())
                else:
                    list(convert.run())
            done = convert.conversion
            left = [(key.directory, "Permission denied") for key in (KEY, NEIGHBOUR)]
            assert sorted(done.unreadable) == left
            assert (done.unreadable_count, done.converted, done.format) == (2, 1, 3)

        def finish() -> None:
            done = converted(path, codec)
            assert (done.unreadable, done.converted, done.format) == ([], 1, FORMAT_OF[codec])

        assert as_nobody(act) == 0
        assert not (path / STAGE_DIRECTORY).exists()
        closed.chmod(0o700)
        kept.chmod(0o700)
        assert shown(Disk(), str(path)) == EXPECTED
        assert as_nobody(finish) == 0
        assert shown(Disk(), str(path)) == EXPECTED


def test_what_is_held_or_no_ready_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreWaiting, match="empty"):
        converted(tmp_path, "zstd")
    with pytest.raises(StoreRefused, match="does not exist"):
        converted(tmp_path / "missing", "zstd")
    (tmp_path / VERSION_SENTINEL).write_text("9\n")
    with pytest.raises(StoreRefused, match="9"):
        converted(tmp_path, "zstd")
    (tmp_path / VERSION_SENTINEL).write_text("2\n")
    held = take(Disk(), str(tmp_path))
    with pytest.raises(StoreHeld, match=f"pid {os.getpid()} "):
        converted(tmp_path, "zstd")
    os.close(held)
    assert converted(tmp_path, "zstd").format == 3


def test_what_flux_writes_meanwhile_is_not_lost(tmp_path: Path) -> None:
    fill(Disk(), str(tmp_path), 2)
    calls = 0

    class BesideFlux(Disk):
        def sync_filesystem(self, directory: int) -> None:
            nonlocal calls
            super().sync_filesystem(directory)
            calls += 1
            # One list before the renames, another one after them.
            write_natively(tmp_path, (KEY, STRANGER)[calls > 1], b"from-flux\n", compressed=True)

    convert = Convert(str(tmp_path), "zstd", THRESHOLD, LIMIT, BesideFlux())
    for _ in convert.run():
        pass
    convert.close()
    now = shown(Disk(), str(tmp_path))
    assert (now[str(KEY)], now[str(STRANGER)]) == (b"from-flux\n", b"from-flux\n")


# -- at each step


def _ranks_differ(disk: Disk, key: RepositoryKey) -> bool:
    """Whether no two variants of a list have the same time: the newer one wins whatever its codec."""
    store = DirectoryStore(disk, disk.open_root("/"), 3, policy_of(3))
    with store.opened(key.namespace, key.name) as directory:
        found = variants.find(disk, directory, CODECS)
    store.close()
    return len({variant.status.st_mtime_ns for variant in found}) == len(found)


class _Watched(FaultyDisk):
    """Reads the whole store, as a mount would, before each call."""

    def arm(self, fault: Fault | None) -> None:
        super().arm(fault)
        self.looks = 0

    def _do(self, method, call, tear=None):
        if hasattr(self, "looks"):
            assert shown(self.inner) == EXPECTED, f"before {method}"
            for key in LISTS:
                assert _ranks_differ(self.inner, key), f"before {method}"
            self.looks += 1
        return super()._do(method, call, tear)


@pytest.mark.parametrize(("before", "codec"), [(2, "zstd"), (3, "gzip")])
@pytest.mark.parametrize("granularity_ns", [1, 1_000_000_000, 2_000_000_000])
def test_a_reader_finds_every_list_whole_at_each_step(before: int, codec: str, granularity_ns: int) -> None:
    disk = _Watched(inner := SimulatedDisk(granularity_ns))
    fill(disk, "/", before)
    kept = times(inner)
    disk.arm(None)
    converted("/", codec, disk)
    assert disk.looks > 50
    assert times(inner) == kept


def _prepared(before: int) -> tuple[FaultyDisk, SimulatedDisk]:
    disk = FaultyDisk(inner := SimulatedDisk())
    fill(disk, "/", before)
    root = inner.open_root("/")
    inner.sync_filesystem(root)
    inner.close(root)
    return disk, inner


def _cases() -> Iterator[object]:
    for before, codec in ((2, "zstd"), (3, "gzip")):
        disk, _ = _prepared(before)
        disk.arm(None)
        converted("/", codec, disk)
        for at, call in enumerate(list(disk.calls)):
            for wrong in (Wrong.EIO, Wrong.CUT, *((Wrong.ENOSPC, Wrong.TORN_CUT) if call == "write" else ())):
                yield pytest.param(before, codec, at, wrong, id=f"{codec}-{at}-{call}-{wrong.name}")


@pytest.mark.parametrize(("before", "codec", "at", "wrong"), list(_cases()))
def test_a_conversion_that_fails_or_is_cut_short_is_finished_by_the_next(
    before: int, codec: str, at: int, wrong: Wrong
) -> None:
    disk, inner = _prepared(before)
    disk.arm(Fault(at, wrong))
    try:
        converted("/", codec, disk)
    except (OSError, PowerCut, ListCorrupt):
        pass
    if wrong in (Wrong.EIO, Wrong.ENOSPC):
        assert inner.open_descriptors == 0
        found = [("", inner)]
    else:
        found = list(inner.survivors())
    for label, survivor in found:
        assert shown(survivor) == EXPECTED, label
        done = converted("/", codec, survivor)
        assert done.format == FORMAT_OF[codec], label
        assert shown(survivor) == EXPECTED, label
        assert problems(survivor) == [], label
        late = [now - then for now, then in zip(times(survivor), range(MTIME, MTIME + len(LISTS)), strict=True)]
        # A crash between the last stale variant's end and the old time costs a nanosecond.
        assert all(0 <= ns <= 1 for ns in late), (label, late)


@pytest.mark.parametrize(("before", "codec"), [(2, "zstd"), (3, "gzip")])
def test_a_finished_conversion_outlives_a_power_loss(before: int, codec: str) -> None:
    _, inner = _prepared(before)
    converted("/", codec, inner)
    for label, survivor in inner.survivors():
        assert shown(survivor) == EXPECTED, label
        assert times(survivor) == [MTIME + number for number in range(len(LISTS))], label
        assert problems(survivor) == [], label
        assert converted("/", codec, survivor).converted == 0, label
