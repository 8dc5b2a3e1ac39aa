"""The benchmark measures what it says: data sets, accounting, the check of bytes, record, charts and page."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import charts, datasets, measure, page, places, readings, reads, record, storage, writes
from bench.results import Chart, Results, Row, Table
from tagfs import mountpoint, taglist
from tagfs.codec import ZSTD
from tests.conftest import MakeDaemon

PROJECT = Path(__file__).parent.parent


def row(ratio: float, goal: float = 1.0, noise: float = 0.0) -> Row:
    return Row("group/what", "what", "2 ms", "peer 1 ms", ratio, goal, noise)


@pytest.mark.parametrize("tags", [0, 1, 10, 400])
def test_a_made_list_is_valid_sorted_and_as_long_as_asked_for(tags: int) -> None:
    for number in range(9):
        plain = datasets.make_list(number, tags)
        taglist.validate(plain)
        lines = plain.splitlines()
        assert len(set(lines)) == len(lines) == tags and lines == sorted(lines)
        assert plain == datasets.make_list(number, tags)


def test_made_lists_compress_no_better_than_real_ones() -> None:
    made = [datasets.make_list(number, 1000) for number in range(12)]
    real = [plain for _, plain in datasets.real().every()]
    gain = [sum(map(len, lists)) / sum(len(ZSTD.encode(plain)) for plain in lists) for lists in (made, real)]
    assert 2 < gain[0] < gain[1]


@pytest.mark.parametrize("data", [datasets.real(), datasets.synthetic(201, 3)])
def test_the_names_of_a_data_set_are_those_of_its_lists(data: datasets.DataSet) -> None:
    assert data.names() == [name for name, _ in data.every()]
    assert len(set(data.names())) == data.lists


@pytest.mark.mount
def test_a_data_set_is_the_same_as_files_and_as_a_store(tmp_path: Path, daemons: MakeDaemon) -> None:
    data = datasets.synthetic(7, 500)
    datasets.write(data, tmp_path / "plain", tmp_path / "store")
    mounted = daemons("--read-only", store=tmp_path / "store")
    for name, plain in data.every():
        assert (tmp_path / "plain" / "imagerepository" / name / "tags.txt").read_bytes() == plain
        assert (mounted.point / "imagerepository" / name / "tags.txt").read_bytes() == plain


def test_sides_take_turns_at_going_first() -> None:
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in "abc"}
    measure.alternated(sides, 3)
    assert order == list("abcbcacab")


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert measure.median_ratio([1, 10, 6], [2, 10, 1]) == 1


def test_a_program_costs_what_the_kernel_says(tmp_path: Path) -> None:
    cost = measure.run([sys.executable, "-c", "sum(range(10**7)); print('done')"], tmp_path, tmp_path / "output")
    assert (tmp_path / "output").read_text() == "done\n"
    assert 0 < cost.cpu <= cost.wall * 1.5


def test_a_program_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(measure.ProgramFailed, match="no such thing"):
        measure.run(["sh", "-c", "echo no such thing >&2; exit 3"], tmp_path, tmp_path / "output", (0, 1))


def test_what_a_process_costs_is_read_while_it_runs() -> None:
    cpu, woken = measure.cpu_of(os.getpid()), measure.wakeups_of(os.getpid())
    sum(range(10**6))
    assert measure.cpu_of(os.getpid()) > cpu
    assert measure.wakeups_since(os.getpid(), woken) >= 0
    assert measure.memory_of(os.getpid()) <= measure.memory_of(os.getpid(), "VmHWM")


@pytest.mark.mount
def test_requests_to_a_daemon_are_counted(tmp_path: Path, daemons: MakeDaemon) -> None:
    counter = measure.RequestCounter()
    if not counter.is_there:
        pytest.skip("counting needs root and the kernel's trace event")
    store = tmp_path / "store"
    datasets.write(datasets.synthetic(20, 10), None, store)
    try:
        mounted = daemons("--read-only", store=store)
        counter.start(mounted.point)
        subprocess.run(["find", str(mounted.point)], stdout=subprocess.DEVNULL, check=True)
        first = counter.stop()
        counter.start(mounted.point)
        nothing = counter.stop()
    finally:
        counter.close()
    assert first is not None and first >= 20
    assert nothing == 0


def test_a_place_that_shows_other_bytes_is_left_out_and_told(tmp_path: Path) -> None:
    data = datasets.synthetic(3, 20)
    made = []
    for name in ("right", "wrong"):
        datasets.write(data, tmp_path / name, None)
        made.append(places.PlainFiles(name, tmp_path / name))
    changed = made[1].lists / datasets.name_of(1) / "tags.txt"
    changed.write_bytes(changed.read_bytes().replace(b"-", b"_", 1))
    names = tmp_path / "names"
    names.write_text("\n".join(f"./{name}/tags.txt" for name, _ in data.every()))
    program = reads.Program("cat of all", ("xargs", "-a", str(names), "cat"))
    results = Results()
    assert reads.same_bytes(list(made), [program], tmp_path / "output", results) == [made[0]]
    assert "cat of all" in results.missing["wrong"]


@pytest.mark.mount
def test_the_floor_shows_the_lists_as_they_are_and_ends_cleanly(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it mounts by itself, which wants root")
    datasets.write(datasets.synthetic(30, 3), tmp_path / "plain", None)
    for number in range(1000):  # more names than one answer has room for
        (tmp_path / "plain" / "imagerepository" / f"team-{number:0100}").mkdir()
    large = tmp_path / "plain" / "imagerepository" / "team-000" / "large" / "tags.txt"
    large.parent.mkdir()
    large.write_bytes(os.urandom(3 << 20))  # more than one READ
    place = places.floor("floor", tmp_path / "plain", tmp_path / "mounted")
    for ends_by_signal in (False, True):
        with place.started():
            subprocess.run(["diff", "-r", tmp_path / "plain", place.point], check=True)
            assert not (place.lists / "team-000" / "nothing").exists()
            with pytest.raises(OSError, match="Read-only"):
                (place.lists / "new").touch()
            process = place.process
            assert process is not None
            if ends_by_signal:
                process.terminate()
                process.wait(20)
                assert mountpoint.mounted_at(str(place.point)) is None
        assert process.returncode == 0
        assert (tmp_path / "mounted.log").read_text().count("\n") == 1  # what it shows, and no complaint


@pytest.mark.parametrize("name", ["floor", "files"])
def test_a_floor_is_compiled_without_a_warning(name: str, tmp_path: Path) -> None:
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", str(tmp_path / name)]
    source = PROJECT / "bench" / "peers" / f"{name}.c"
    done = subprocess.run(
        [os.environ.get("CC", "gcc"), *flags, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == ""


def test_a_peer_that_cannot_be_built_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(places.PeerMissing, match="no no-such-compiler on this machine"):
        places.floor("floor", tmp_path, tmp_path / "mounted")


def test_a_fresh_mount_is_told_beside_the_floor_and_a_goal_says_whether_that_meets_it() -> None:
    def sample(ms: float) -> list[readings.Sample]:
        return [readings.Sample(ms / 1000, ms / 1000, None)] * 3

    took = {readings.OURS: 100, readings.FLOOR: 40, readings.FUSE_ZSTD: 400, "btrfs (zstd:1)": 20}
    fresh = {(name, "find"): sample(ms) for name, ms in took.items()}
    warm = {(readings.EXT4, "find"): sample(10), (readings.OURS, "find"): sample(10)}
    results = Results()
    readings.tell(datasets.synthetic(9, 9), ["find"], warm, fresh, results)
    told = {row.key.rpartition("/")[2]: row for row in results.rows if row.key.startswith("read-fresh/")}
    assert {name: (round(row.ratio, 3), row.goal is None, row.verdict) for name, row in told.items()} == {
        "ext4": (10, False, "miss"),  # 40 ms would be 4 times
        "fuse-zstd": (0.25, False, "miss"),  # 40 ms would be a tenth
        "btrfs": (5, False, "miss (the floor too)"),
        "floor": (2.5, True, ""),
    }
    del fresh[readings.FLOOR, "find"]
    without = Results()
    readings.tell(datasets.synthetic(9, 9), ["find"], warm, fresh, without)
    assert [row.verdict for row in without.rows if row.key.endswith("/btrfs")] == ["miss"]
    assert record.worse(results.rows, {row.key: row.ratio for row in without.rows}) == []


def test_every_storage_in_this_process_gives_back_the_same_bytes(tmp_path: Path) -> None:
    datasets.write(datasets.synthetic(6, 300), tmp_path / "plain", None)
    digests = {storage.digest_of(tmp_path / "plain" / "imagerepository")}
    for side in ("tagfs", "tagfs-durable", "tagfs-grouped", "sqlite", "sqlite-durable", "sqlite-grouped"):
        (tmp_path / side).mkdir()
        answer = {}
        for work in ("set", "digest"):
            words = [side, work, tmp_path / "plain" / "imagerepository", tmp_path / side]
            done = subprocess.run(
                [sys.executable, "-m", "bench.peers.inprocess", *map(str, words)],
                capture_output=True,
                check=True,
                cwd=PROJECT,
            )
            answer = json.loads(done.stdout)
            assert answer["cpu_s"] > 0 and answer["peak_kib"] > 1000
        digests.add(answer["digest"])
    assert len(digests) == 1


@pytest.mark.parametrize("words", [(), ("-durable", "2")], ids=["not durable", "in groups"])
def test_the_floor_of_a_store_writes_the_lists_as_they_are_stored(tmp_path: Path, words: tuple[str, ...]) -> None:
    datasets.write(datasets.synthetic(7, 300), tmp_path / "plain", tmp_path / "stored")
    (tmp_path / "store").mkdir()
    for work in ("set", "get"):
        argv = [places.built("files"), *words, work, tmp_path / "stored", tmp_path / "store"]
        answer = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
        assert 0 < answer["cpu_s"] <= answer["wall_s"] * 1.5 and answer["peak_kib"] > 0
    assert subprocess.run(["diff", "-r", tmp_path / "stored", tmp_path / "store"], check=False).returncode == 0


def test_a_goal_that_no_store_of_files_can_meet_says_so() -> None:
    def sample(cost: float) -> list[storage.Sample]:
        return [storage.Sample(cpu=cost, set_cpu=1, set_wall=1, peak=1, disk=1, written=1, digest="")] * 3

    costs = {storage.OURS: 3, storage.FLOOR: 2, storage.BADGER: 1, storage.SQLITE: 2.5, storage.FLUX_64: 4}
    rows = storage.goals(datasets.synthetic(9, 9), {name: sample(cost) for name, cost in costs.items()})
    told = {row.peer.partition(":")[0]: row.verdict for row in rows if "/cpu/" in row.key}
    assert told == {
        storage.BADGER: "miss (the floor too)",
        storage.SQLITE: "miss",
        storage.FLUX_64: "pass",
        storage.FLOOR: "",
    }


def test_a_storage_that_fails_or_gives_back_other_bytes_is_left_out_and_told(tmp_path: Path) -> None:
    datasets.write(datasets.synthetic(3, 20), tmp_path / "plain", None)
    digest = storage.digest_of(tmp_path / "plain" / "imagerepository")

    def sample(digest: str) -> storage.Sample:
        return storage.Sample(cpu=1, set_cpu=1, set_wall=1, peak=1, disk=1, written=1, digest=digest)

    right, wrong = sample(digest), sample(digest[::-1])
    results = Results()
    failed = places.PeerMissing("it ended with 1")
    taken: dict[str, list[storage.Sample | places.PeerMissing]] = {
        "right": [right, right],
        "wrong": [right, wrong],
        "failed": [right, failed],
    }
    assert storage.only_right(taken, digest, results) == {"right": [right, right]}
    assert results.missing.keys() == {"wrong", "failed"}


def test_clients_replace_every_list_and_readers_see_them(tmp_path: Path) -> None:
    data = datasets.synthetic(5, 30)
    datasets.write(data, tmp_path / "plain", None)
    source, target = tmp_path / "plain" / "imagerepository", tmp_path / "target"
    target.mkdir()
    assert writes.clients("write", "2", target, "--source", source, "--sync")["lists"] == 5
    for name, plain in data.every():
        assert [path.read_bytes() for path in (target / name).iterdir()] == [plain]
    assert writes.clients("read", "2", target, "--seconds", "0.1")["lists"] > 0


def test_a_ratio_is_worse_where_the_record_and_the_noise_say_so() -> None:
    recorded = {"group/what": 0.5}
    assert record.worse([row(0.7)], recorded) == []
    assert len(record.worse([row(0.8)], recorded)) == 1
    assert record.worse([row(0.8, noise=0.6)], recorded) == []
    assert record.worse([row(9.0)], {}) == []


def test_a_record_keeps_what_a_short_run_did_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"group/what": 3.0, "other": 1.0}')
    record.save([row(2.0)], path)
    assert record.load(path) == {"group/what": 2.0, "other": 1.0}


BARS = Chart("Bars", "grep <all>", "", "ms", {"ext4": ((0, 2.0),), "tagfs": ((0, 1.0),)})
CURVES = Chart(
    "Curves", "by lists", "lists", "s", {"find": ((100, 0.1), (1000, 1.0)), "start": ((100, 0.2), (1000, 0.2))}
)


@pytest.mark.parametrize("chart", [BARS, CURVES], ids=["bars", "curves"])
def test_a_chart_is_well_formed_and_light_or_dark(chart: Chart) -> None:
    drawn = charts.draw(chart)
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert chart.title in texts and set(chart.points) <= set(texts)
    assert "prefers-color-scheme: dark" in drawn


def test_the_own_bar_is_marked_and_longest_where_it_is_slowest() -> None:
    drawn = ElementTree.fromstring(charts.draw(BARS)).iter("{http://www.w3.org/2000/svg}rect")
    widths = {bar.get("class"): float(bar.get("width", "0")) for bar in drawn if bar.get("class") != "paper"}
    assert widths["bar"] == pytest.approx(2 * widths["own"], rel=0.01)


def test_the_page_says_what_was_missed_and_what_was_not_measured(tmp_path: Path) -> None:
    no_goal = Row("group/floor", "beside", "2 ms", "floor 1 ms", 2.0, None)
    results = Results([row(2.0), row(0.5), no_goal], [Table("Times", ("a",), (("1|2",),), "A note.")], [BARS])
    results.missing["peer"] = "no such program"
    document = tmp_path / "docs" / "benchmarks.md"
    document.parent.mkdir()
    page.write(results, "make bench", page.machine(tmp_path), document, ["slower now"])
    text = document.read_text()
    assert "| what | 2 ms | peer 1 ms | 2.00 | ≤ 1 | miss |" in text
    assert "| beside | 2 ms | floor 1 ms | 2.00 | – |  |" in text
    assert "- peer: no such program" in text and "- slower now" in text and "1\\|2" in text
    assert (document.parent / "charts" / "bars.svg").exists()
