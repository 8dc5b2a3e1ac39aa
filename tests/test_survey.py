"""Survey: what `tagfs status` counts in a store and through a mount, and the faults it names."""

import errno
import gzip
from pathlib import Path

import pytest

from tagfs import taglist
from tagfs.codec import ZSTD
from tagfs.disk import Disk
from tagfs.errors import MountRefused, StoreRefused, StoreWaiting
from tagfs.mountpoint import FSTYPE, Mounted
from tagfs.names import VERSION_SENTINEL, WIPE_SENTINEL, RepositoryKey
from tagfs.survey import LARGEST_SHOWN, MountSurveyor, Survey, surveyor
from tests.conftest import MakeDaemon
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import KEY, LARGE, NEIGHBOUR, SMALL, STRANGER, open_store, write_natively

LIMIT = 1 << 20


def surveyed(path: Path, disk: Disk | None = None) -> Survey:
    counting = surveyor(str(path), LIMIT, settling_seconds=0, disk=disk)
    steps = sum(1 for _ in counting.run())
    assert steps == counting.total() or counting.survey.problems
    return counting.survey


def reasons(survey: Survey) -> dict[str, str]:
    return {problem.path: problem.reason for problem in survey.problems}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three lists and a repository without one."""
    path = tmp_path / "store"
    path.mkdir()
    made = open_store(Disk(), str(path))
    made.replace(KEY, LARGE)
    made.replace(NEIGHBOUR, SMALL)
    made.replace(STRANGER, b"")
    made.make_repository(RepositoryKey("apps", "new"))
    made.close()
    return path


def test_a_store_is_counted(store: Path) -> None:
    survey = surveyed(store)
    files = list((store / "imagerepository").rglob("tags.txt*"))
    assert (survey.kind, survey.format, survey.codec) == ("store", 3, "zstd")
    assert (survey.repositories, survey.repositories_without_list) == (3, 1)
    assert survey.tags == taglist.count(LARGE) + taglist.count(SMALL)
    assert survey.plain_bytes == len(LARGE) + len(SMALL)
    assert survey.stored_bytes == sum(file.stat().st_size for file in files)
    assert survey.disk_bytes == sum(file.stat().st_blocks * 512 for file in files)
    assert survey.ratio == round(survey.plain_bytes / survey.stored_bytes, 2)
    assert survey.largest[0] == (str(KEY), taglist.count(LARGE), len(LARGE))
    assert survey.problem_count == 0


def test_a_store_of_fluxs_will_be_written_with_gzip(tmp_path: Path) -> None:
    (tmp_path / VERSION_SENTINEL).write_text("2\n")
    write_natively(tmp_path, KEY, LARGE, compressed=True)
    survey = surveyed(tmp_path)
    assert (survey.format, survey.codec, survey.tags) == (2, "gzip", taglist.count(LARGE))


def test_of_the_largest_lists_ten_are_named_in_order() -> None:
    survey = Survey("/", "store")
    for number in range(100):
        survey.count(f"apps/r{number:02}", number % 50, 1, 1)
    assert [tags for _, tags, _ in survey.largest] == [49, 49, 48, 48, 47, 47, 46, 46, 45, 45]
    assert len(survey.largest) == LARGEST_SHOWN
    assert survey.largest[0][0] == "apps/r49"


def test_an_empty_store_has_no_ratio(tmp_path: Path) -> None:
    open_store(Disk(), str(tmp_path)).close()
    survey = surveyed(tmp_path)
    assert (survey.ratio, survey.disk_ratio, survey.repositories, survey.problem_count) == (None, None, 0, 0)


def test_faults_are_named_and_the_rest_is_counted(store: Path) -> None:
    corrupt = store / KEY.directory / "tags.txt.zst"
    corrupt.write_bytes(b"junk")
    large = store / NEIGHBOUR.directory / "tags.txt"
    large.write_bytes(b"v1\n" * LIMIT)
    write_natively(store, STRANGER, SMALL, compressed=True, mtime_ns=1)
    survey = surveyed(store)
    found = reasons(survey)
    assert found.pop(f"{KEY.directory}/tags.txt.zst") == "not zstd, or truncated"
    assert "--max-list-size" in found.pop(f"{NEIGHBOUR.directory}/tags.txt")
    assert found.pop(STRANGER.directory) == "tags.txt wins, and the stale tags.txt.gz is still there"
    assert not found
    assert survey.repositories == 3
    assert survey.problem_count == 3


def test_a_variant_that_a_writer_removes_meanwhile_is_no_problem(store: Path) -> None:
    stale = write_natively(store, KEY, SMALL, compressed=True, mtime_ns=1)
    counting = surveyor(str(store), LIMIT, settling_seconds=0)
    steps = counting.run()
    next(steps)
    stale.unlink()
    assert sum(1 for _ in steps) == 3
    assert counting.survey.problems == []


def test_what_vanishes_meanwhile_is_no_problem() -> None:
    class Vanishing(SimulatedDisk):
        is_vanishing = False

        def open_file(self, directory: int, name: str) -> int:
            if self.is_vanishing and name.startswith("tags.txt"):
                self.unlink(directory, name)
            return super().open_file(directory, name)

        def open_dir(self, directory: int, name: str) -> int:
            if self.is_vanishing and name == STRANGER.namespace:
                raise FileNotFoundError(errno.ENOENT, "", name)
            return super().open_dir(directory, name)

    disk = Vanishing()
    made = open_store(disk, "/")
    for key in (KEY, NEIGHBOUR, STRANGER):
        made.replace(key, LARGE)
    made.close()
    disk.is_vanishing = True
    survey = surveyed(Path("/"), disk)
    assert (survey.repositories, survey.problems) == (0, [])


def test_a_directory_that_cannot_be_read_is_a_problem_and_the_others_are_counted() -> None:
    class Failing(SimulatedDisk):
        def open_dir(self, directory: int, name: str) -> int:
            if name == KEY.name:
                raise OSError(errno.EIO, "Input/output error", name)
            return super().open_dir(directory, name)

    disk = Failing()
    made = open_store(disk, "/")
    made.replace(NEIGHBOUR, LARGE)
    made.make_repository(KEY)
    made.close()
    survey = surveyed(Path("/"), disk)
    assert reasons(survey) == {KEY.directory: "Input/output error"}
    assert survey.repositories == 1


def test_a_survey_writes_nothing_and_takes_no_lock(store: Path) -> None:
    writer = open_store(Disk(), str(store))
    assert writer.disk.lock(writer.root)
    before = sorted((str(file), file.lstat().st_ctime_ns) for file in store.rglob("*"))
    assert surveyed(store).problems == []
    assert sorted((str(file), file.lstat().st_ctime_ns) for file in store.rglob("*")) == before
    writer.close()


@pytest.mark.parametrize(
    ("names", "error", "told"),
    [
        ({}, StoreWaiting, "not ready: empty"),
        ({VERSION_SENTINEL: "3\n", WIPE_SENTINEL: ""}, StoreWaiting, "a wipe of it was begun"),
        ({VERSION_SENTINEL: "7\n"}, StoreRefused, "says '7'"),
        ({"MANIFEST": ""}, StoreWaiting, "BadgerDB|MANIFEST"),
        ({"thesis.tex": ""}, StoreRefused, "no tag store.*thesis.tex"),
    ],
)
def test_what_is_no_ready_store_is_refused(
    tmp_path: Path, names: dict[str, str], error: type[Exception], told: str
) -> None:
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=told):
        surveyed(tmp_path)


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="does not exist"):
        surveyed(tmp_path / "missing")


def test_symbolic_links_are_not_followed(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "web"
    outside.mkdir(parents=True)
    (outside / "tags.txt").write_bytes(SMALL)
    (store / "imagerepository" / "linked").symlink_to(tmp_path / "outside")
    (store / "imagerepository" / "apps" / "new" / "tags.txt").symlink_to(outside / "tags.txt")
    survey = surveyed(store)
    assert (survey.repositories, survey.repositories_without_list) == (3, 1)


# -- through a mount


def _fake_mount(path: Path) -> MountSurveyor:
    return MountSurveyor(Mounted(str(path), FSTYPE, "/the/store", frozenset({"ro"}), (0, 1)))


def _run(counting: MountSurveyor) -> Survey:
    assert sum(1 for _ in counting.run()) == counting.total()
    return counting.survey


def test_a_mount_is_read_as_any_program_reads_it(tmp_path: Path) -> None:
    for key, plain in ((KEY, LARGE), (NEIGHBOUR, SMALL)):
        (tmp_path / key.directory).mkdir(parents=True)
        (tmp_path / key.path).write_bytes(plain)
    (tmp_path / STRANGER.directory).mkdir(parents=True)
    survey = _run(_fake_mount(tmp_path))
    assert (survey.kind, survey.store, survey.read_only) == ("mount", "/the/store", True)
    assert (survey.format, survey.stored_bytes, survey.ratio) == (None, None, None)
    assert (survey.repositories, survey.repositories_without_list) == (2, 1)
    assert (survey.tags, survey.plain_bytes) == (taglist.count(LARGE + SMALL), len(LARGE + SMALL))
    assert survey.disk_bytes == sum((tmp_path / key.path).stat().st_blocks * 512 for key in (KEY, NEIGHBOUR))


@pytest.mark.mount
def test_a_real_mount_says_what_the_store_says(store: Path, daemons: MakeDaemon) -> None:
    daemon = daemons("--read-only", store=store)
    by_mount = surveyed(daemon.point)
    for path in (daemon.point / "imagerepository" / "apps", daemon.list_path("podinfo", "apps")):
        assert surveyed(path) == by_mount
    assert (by_mount.kind, by_mount.path, by_mount.read_only) == ("mount", str(daemon.point), True)
    assert by_mount.store == str(store)
    by_store = surveyed(store)
    for name in ("repositories", "repositories_without_list", "tags", "plain_bytes", "disk_bytes", "largest"):
        assert getattr(by_mount, name) == getattr(by_store, name), name


@pytest.mark.mount
def test_a_list_that_the_mount_cannot_show_is_a_problem(store: Path, daemons: MakeDaemon) -> None:
    (store / KEY.directory / "tags.txt.zst").write_bytes(ZSTD.encode(LARGE)[:-5])
    daemon = daemons("--read-only", store=store, expected=("tags.txt.zst",))
    survey = surveyed(daemon.point)
    assert survey.problem_count == 1
    assert survey.problems[0].reason == f"Input/output error; `tagfs check {store}` says why"
    assert survey.repositories == 3


@pytest.mark.mount
def test_a_mount_that_waits_for_its_store_and_a_dead_one_are_errors(tmp_path: Path, daemons: MakeDaemon) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    waiting = daemons("--read-only", store=empty, start=False, expected=("not ready",)).start(wait=False)
    waiting.await_line("waits")
    with pytest.raises(StoreWaiting, match="waits for its store"):
        surveyed(waiting.point)
    waiting.kill()
    with pytest.raises(MountRefused, match="dead"):
        surveyed(waiting.point)


def test_gzip_is_counted_by_what_it_holds(store: Path) -> None:
    (store / KEY.directory / "tags.txt.zst").unlink()
    (store / KEY.directory / "tags.txt.gz").write_bytes(gzip.compress(LARGE))
    assert surveyed(store).tags == taglist.count(LARGE) + taglist.count(SMALL)
