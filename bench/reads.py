"""Reads: grep, cat, find, ls and rg over every list, on each place, warm and on a fresh mount.

Owns: the programs, the sides, the goals of reading.
Does not know: how a place is mounted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import datasets, places
from bench.datasets import DataSet
from bench.measure import (
    ProgramFailed,
    RequestCounter,
    alternated,
    cpu_of,
    digest_of_lines,
    median,
    median_ratio,
    run,
)
from bench.places import PeerMissing, Place
from bench.results import Chart, Results, Row, Table

EXT4 = "ext4, plain files"
OURS = "tagfs"
SLOW = "tagfs --no-fast-path"

WARM_GOAL = 1.15
FRESH_GOAL = 6.0


@dataclass(frozen=True, slots=True)
class Program:
    """`normal` makes a line of the output equal on all places, or None where it says nothing of the lists."""

    name: str
    argv: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    normal: Callable[[bytes], bytes | None] = lambda line: line


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of the program, CPU seconds of the program and its daemon, requests to the daemon."""

    wall: float
    cpu: float
    requests: int | None


def measure(data: DataSet, work: Path, rounds: int, results: Results) -> None:
    plain, store = work / "plain", work / "store"
    datasets.write(data, plain, store)
    names = work / "names"
    names.write_text("\n".join(f"./{name}/tags.txt" for name, _ in data.every()) + "\n")
    programs = programs_for(results, names)
    counter = RequestCounter()
    if not counter.is_there:
        results.missing["requests that reach a daemon"] = "this kernel shows no trace event fuse_request_send to us"
    sides = _sides(plain, store, work, results)
    output = work / "output"
    try:
        sides = same_bytes(sides, programs, output, results)
        fresh = _fresh(sides, programs, output, rounds, counter)
        warm = _warm(sides, programs, output, rounds, counter)
    finally:
        counter.close()
    _beside_mounts(data, store, output, rounds, warm, results)
    _tell(data, sides, programs, warm, fresh, results)


def programs_for(results: Results, names: Path) -> list[Program]:
    """`names`: a file with the path of each list, from the directory of namespaces."""
    made = [
        Program("grep -rc", ("grep", "-rc", "alpine", "."), (0, 1)),
        Program("cat of all", ("xargs", "-a", str(names), "cat")),
        Program("find", ("find", ".")),
        Program("ls -lR", ("ls", "-lR", "."), normal=_names_and_sizes),
    ]
    try:
        made.append(Program("rg", (str(places.built("rg", "ripgrep")), "-c", "alpine", "."), (0, 1)))
    except PeerMissing as error:
        results.missing["rg"] = str(error)
    return made


def _sides(plain: Path, store: Path, work: Path, results: Results) -> list[Place]:
    squash = work / "squashfs.img"
    makers: dict[str, Callable[[], Place]] = {
        EXT4: lambda: places.PlainFiles(EXT4, plain),
        OURS: lambda: places.tagfs(OURS, store, work / "tagfs", "--read-only"),
        SLOW: lambda: places.tagfs(SLOW, store, work / "tagfs-slow", "--read-only", "--no-fast-path"),
        "tagfs, read-write": lambda: places.tagfs("tagfs, read-write", store, work / "tagfs-rw"),
        "fuse-zstd": lambda: places.fuse_zstd(store, work / "every-zstd", work / "fuse-zstd"),
        "squashfs (zstd)": lambda: _squashfs(plain, squash, work),
        "squashfuse (zstd)": lambda: places.squashfuse(squash, work / "squashfuse"),
        "btrfs (zstd:1)": lambda: places.btrfs(plain, work / "btrfs.img", work / "btrfs"),
        "erofs": lambda: places.erofs(plain, work / "erofs.img", work / "erofs"),
        "ext4, loop device": lambda: places.ext4(plain, work / "ext4.img", work / "ext4"),
    }
    made = []
    for name, make in makers.items():
        try:
            place = make()
            with place.started():
                made.append(place)
        except PeerMissing as error:
            if name in (EXT4, OURS):
                raise
            results.missing[name] = str(error)
    return made


def _squashfs(plain: Path, image: Path, work: Path) -> Place:
    places.squashfs_image(plain, image)
    return places.squashfs(image, work / "squashfs")


def same_bytes(sides: list[Place], programs: list[Program], output: Path, results: Results) -> list[Place]:
    """The sides on which every program says what it says on plain files; the others are told as missing."""
    expected: dict[str, str] = {}
    good = []
    for side in sides:
        with side.started():
            try:
                for program in programs:
                    run(program.argv, side.lists, output, program.codes)
                    digest = digest_of_lines(output, program.normal)
                    if expected.setdefault(program.name, digest) != digest:
                        raise PeerMissing(f"{program.name} says other things there than on plain files")
                good.append(side)
            except (PeerMissing, ProgramFailed) as error:
                if side.name in (EXT4, OURS):
                    raise
                results.missing[side.name] = str(error)
    return good


Samples = dict[tuple[str, str], list[Sample]]
"""(side, program) -> a sample a round."""


def _fresh(sides: list[Place], programs: list[Program], output: Path, rounds: int, counter: RequestCounter) -> Samples:
    """Each program on a mount that was made for it; what is beneath is in the page cache."""
    found: Samples = {}
    for program in programs:
        mounted = {
            side.name: partial(_sample_once, side, program, output, counter) for side in sides if side.name != EXT4
        }
        for name, samples in alternated(mounted, rounds).items():
            found[name, program.name] = samples
    return found


def _warm(sides: list[Place], programs: list[Program], output: Path, rounds: int, counter: RequestCounter) -> Samples:
    found: Samples = {}
    started: list[Place] = []
    try:
        for side in sides:
            side.start()
            started.append(side)
        for program in programs:
            for side in sides:
                for _ in range(2):
                    run(program.argv, side.lists, output, program.codes)
            samples = alternated(
                {side.name: partial(_sample, side, program, output, counter) for side in sides}, rounds
            )
            for name, runs in samples.items():
                found[name, program.name] = runs
    finally:
        for side in started:
            side.stop()
    return found


def _sample_once(side: Place, program: Program, output: Path, counter: RequestCounter) -> Sample:
    with side.started():
        return _sample(side, program, output, counter)


def _sample(side: Place, program: Program, output: Path, counter: RequestCounter) -> Sample:
    pid = side.pid
    before = cpu_of(pid) if pid else 0.0
    if pid:
        counter.start(side.point)
    # The bytes of every list are no small output: they go nowhere.  grep would stop early if it saw that.
    target = Path("/dev/null") if program.argv[-1] == "cat" else output
    cost = run(program.argv, side.lists, target, program.codes)
    requests = counter.stop() if pid else None
    return Sample(cost.wall, cost.cpu + (cpu_of(pid) - before if pid else 0.0), requests)


def _beside_mounts(data: DataSet, store: Path, output: Path, rounds: int, warm: Samples, results: Results) -> None:
    """Programs that read the compressed files of a store by themselves, without any mount."""
    makers: dict[str, Callable[[], tuple[str, ...]]] = {
        "zstd -dc | grep -c, on the store": lambda: (
            "sh",
            "-c",
            "find . -name '*.zst' | while read -r f; do zstd -dcq \"$f\" | grep -c alpine; done; "
            "find . -name tags.txt | xargs -r grep -c alpine",
        ),
        "zstd -dc of all | grep -c, one count for all, on the store": lambda: (
            "sh",
            "-c",
            "{ find . -name '*.zst' -print0 | xargs -0 -r zstd -dcq; "
            "find . -name tags.txt -print0 | xargs -0 -r cat; } | grep -c alpine",
        ),
        "ugrep -z, on the store": lambda: (str(places.built("ugrep", "ugrep")), "-zrc", "alpine", "."),
        "rg -z, on the store": lambda: (str(places.built("rg", "ripgrep")), "-zc", "alpine", "."),
    }
    expected = sum(plain.count(b"alpine") > 0 for _, plain in data.every())
    matching = sum(b"alpine" in line for _, plain in data.every() for line in plain.splitlines())
    sides = {}
    for name, make in makers.items():
        try:
            argv = make()
            run(argv, store / "imagerepository", output, (0, 1, 123))
            counts = [int(line.rpartition(b":")[2]) for line in output.read_bytes().splitlines() if line[-1:].isdigit()]
            if sum(counts) != matching or (len(counts) > 1 and sum(count > 0 for count in counts) != expected):
                raise PeerMissing(f"it counts {sum(counts)} lines where there are {matching}")
            sides[name] = partial(run, argv, store / "imagerepository", output, (0, 1, 123))
        except (PeerMissing, ProgramFailed) as error:
            results.missing[name] = str(error)
    for name, costs in alternated(sides, min(rounds, 3)).items():
        warm[name, "grep -rc"] = [Sample(cost.wall, cost.cpu, None) for cost in costs]


def _tell(
    data: DataSet, sides: list[Place], programs: list[Program], warm: Samples, fresh: Samples, results: Results
) -> None:
    names = list(dict.fromkeys([side.name for side in sides] + [name for name, _ in warm]))
    for title, samples, note in (
        ("warm", warm, "Milliseconds of the program, in brackets the CPU milliseconds of program and daemon together."),
        ("fresh mount", fresh, "The bytes beneath are in the page cache. Mounting itself is not counted."),
    ):
        rows = [
            (name, *(_cell(samples.get((name, program.name))) for program in programs))
            for name in names
            if any((name, program.name) in samples for program in programs)
        ]
        results.tables.append(
            Table(f"Reading {data.name}, {title}", ("", *(program.name for program in programs)), tuple(rows), note)
        )
    asked = (OURS, SLOW, "tagfs, read-write", "fuse-zstd", "squashfuse (zstd)")
    results.tables.append(
        Table(
            f"Requests that reach the daemon, {data.name}: warm / fresh",
            ("", *(program.name for program in programs)),
            tuple(
                (name, *(f"{_requests(warm, name, one)} / {_requests(fresh, name, one)}" for one in programs))
                for name in asked
                if (name, programs[0].name) in warm
            ),
        )
    )
    key = data.name.replace(",", "").replace(" ", "-").replace("×", "x")
    for program in programs:
        ours, base = warm[OURS, program.name], warm[EXT4, program.name]
        count = _requests(warm, OURS, program)
        results.rows.append(
            Row(
                f"read-warm/{key}/{program.name}",
                f"{program.name}, {data.name}, warm",
                f"{_ms(ours)} ms, {count} requests",
                f"ext4 {_ms(base)} ms",
                median_ratio(_walls(ours), _walls(base)),
                WARM_GOAL,
            )
        )
        if count != "?":
            results.rows.append(
                Row(f"requests/{key}/{program.name}", f"requests, {program.name}, {data.name}, warm", count, "none",
                    float(count), 0.0, noise=50.0)
            )  # fmt: skip
        ours = fresh[OURS, program.name]
        goals = [(EXT4, "ext4 warm", base, FRESH_GOAL)] + [
            (name, f"{name}, fresh", fresh[name, program.name], goal)
            for name, goal in (("fuse-zstd", 0.2), ("squashfuse (zstd)", 1.0), ("btrfs (zstd:1)", 1.0))
            if (name, program.name) in fresh
        ]
        erofs = [(name, f"{name}, fresh", fresh[name, one], 1.0) for name, one in fresh
                 if name.startswith("erofs") and one == program.name]  # fmt: skip
        for name, told, theirs, goal in goals + erofs:
            results.rows.append(
                Row(
                    f"read-fresh/{key}/{program.name}/{name.partition(' ')[0]}",
                    f"{program.name}, {data.name}, fresh mount",
                    f"{_ms(ours)} ms",
                    f"{told} {_ms(theirs)} ms",
                    median_ratio(_walls(ours), _walls(theirs)),
                    goal,
                )
            )
    shown = [(name, samples) for (name, one), samples in warm.items() if one == "grep -rc"]
    results.charts.append(
        Chart(f"grep-warm-{key}", f"grep -rc over {data.name}, warm", "", "ms",
              {name: ((0.0, median(_walls(samples)) * 1000),) for name, samples in shown})
    )  # fmt: skip
    shown = [(name, samples) for (name, one), samples in fresh.items() if one == "grep -rc"]
    results.charts.append(
        Chart(f"grep-fresh-{key}", f"grep -rc over {data.name}, on a fresh mount", "", "ms",
              {name: ((0.0, median(_walls(samples)) * 1000),) for name, samples in shown})
    )  # fmt: skip


def _walls(samples: list[Sample]) -> list[float]:
    return [sample.wall for sample in samples]


def _ms(samples: list[Sample]) -> str:
    return f"{median(_walls(samples)) * 1000:.0f}"


def _cell(samples: list[Sample] | None) -> str:
    return f"{_ms(samples)} ({median(sample.cpu for sample in samples) * 1000:.0f})" if samples else "–"


def _requests(samples: Samples, name: str, program: Program) -> str:
    counts = [sample.requests for sample in samples.get((name, program.name), []) if sample.requests is not None]
    return f"{median(counts):.0f}" if counts else "?"


def _names_and_sizes(line: bytes) -> bytes | None:
    """Of `ls -lR`: size and name of each file, the names of directories; not blocks, modes, owners, times."""
    words = line.split()
    if line.startswith(b"-"):
        return words[4] + b" " + words[8]
    return words[8] if line.startswith(b"d") else None
