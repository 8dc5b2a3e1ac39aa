"""Reads: grep, cat, find, ls and rg over every list, on each place, warm and on a fresh mount.

Owns: the programs, the sides, the check of their bytes, the samples.
Does not know: how a place is mounted, what a sample is worth.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import datasets, places, readings
from bench.datasets import DataSet
from bench.measure import Pace, ProgramFailed, RequestCounter, alternated, cpu_of, digest_of_lines, run
from bench.places import PeerMissing, Place
from bench.readings import BOTH, EXT4, FLOOR, FUSE_ZSTD, GREP, OURS, SLOW, SQUASHFUSE, Sample, Samples
from bench.results import Results

_STAYS = 15.0
"""Seconds that what a program has read is taken to stay in memory: some machines take back what nobody uses for a
minute (DAMON, `mm/damon` of the kernel), and with large lists a side's turn comes that late."""


@dataclass(frozen=True, slots=True)
class Program:
    """`normal` makes a line of the output equal on all places, or None where it says nothing of the lists."""

    name: str
    argv: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    normal: Callable[[bytes], bytes | None] = lambda line: line


def measure(data: DataSet, work: Path, pace: Pace, results: Results) -> None:
    plain, store = work / "plain", work / "store"
    datasets.write(data, plain, store)
    names = work / "names"
    names.write_text("\n".join(f"./{name}/tags.txt" for name in data.names()) + "\n")
    programs = programs_for(results, names)
    counter = RequestCounter()
    if not counter.is_there:
        results.missing["requests that reach a daemon"] = "this kernel shows no trace event fuse_request_send to us"
    sides = _sides(plain, store, work, results)
    output = work / "output"
    try:
        sides = same_bytes(sides, programs, output, results)
        fresh = _fresh(sides, programs, output, pace, counter)
        warm = _warm(sides, programs, output, pace, counter)
    finally:
        counter.close()
    _beside_mounts(data, store, output, pace, warm, results)
    readings.tell(data, [program.name for program in programs], warm, fresh, results)


def programs_for(results: Results, names: Path) -> list[Program]:
    """`names`: a file with the path of each list, from the directory of namespaces."""
    made = [
        Program(GREP, ("grep", "-rc", "alpine", "."), (0, 1)),
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
        BOTH: lambda: places.tagfs(BOTH, store, work / "tagfs-rw"),
        FLOOR: lambda: places.floor(FLOOR, plain, work / "floor"),
        FUSE_ZSTD: lambda: places.fuse_zstd(store, work / "every-zstd", work / "fuse-zstd"),
        "squashfs (zstd)": lambda: _squashfs(plain, squash, work),
        SQUASHFUSE: lambda: places.squashfuse(squash, work / "squashfuse"),
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
    if any(side.name == "erofs (lz4hc)" for side in made):
        results.missing["erofs with zstd"] = "this mkfs.erofs has none (1.8 has): lz4hc stands for it"
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


def _fresh(sides: list[Place], programs: list[Program], output: Path, pace: Pace, counter: RequestCounter) -> Samples:
    """Each program on a mount that was made for it; what is beneath is in the page cache."""
    found: Samples = {}
    for program in programs:
        mounted = {
            side.name: _kept_warm(partial(_sample_once, side, program, output, counter))
            for side in sides
            if side.name != EXT4
        }
        for name, samples in alternated(mounted, *pace).items():
            found[name, program.name] = samples
    return found


def _warm(sides: list[Place], programs: list[Program], output: Path, pace: Pace, counter: RequestCounter) -> Samples:
    found: Samples = {}
    started: list[Place] = []
    try:
        for side in sides:
            side.start()
            started.append(side)
        for program in programs:
            for side in sides:
                run(program.argv, side.lists, output, program.codes)
            running = {side.name: _kept_warm(partial(_sample, side, program, output, counter)) for side in sides}
            for name, runs in alternated(running, *pace).items():
                found[name, program.name] = runs
    finally:
        for side in started:
            side.stop()
    return found


def _kept_warm(sample: Callable[[], Sample]) -> Callable[[], Sample]:
    """`sample`, after one that does not count where the last was too long ago."""
    last = -math.inf

    def sampled() -> Sample:
        nonlocal last
        if time.monotonic() - last > _STAYS:
            sample()
        found = sample()
        last = time.monotonic()
        return found

    return sampled


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


def _beside_mounts(data: DataSet, store: Path, output: Path, pace: Pace, warm: Samples, results: Results) -> None:
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
    found = [sum(b"alpine" in line for line in plain.splitlines()) for _, plain in data.every()]
    expected, matching = sum(count > 0 for count in found), sum(found)
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
    for name, costs in alternated(sides, *pace).items():
        warm[name, GREP] = [Sample(cost.wall, cost.cpu, None) for cost in costs]


def _names_and_sizes(line: bytes) -> bytes | None:
    """Of `ls -lR`: size and name of each file, the names of directories; not blocks, modes, owners, times."""
    words = line.split()
    if line.startswith(b"-"):
        return words[4] + b" " + words[8]
    return words[8] if line.startswith(b"d") else None
