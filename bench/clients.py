"""Clients: processes that read or write lists side by side, as programs do in front of a mount.

usage: python -m bench.clients read N DIRECTORY --seconds S [--namespace NS] [--pause S]
       python -m bench.clients write N DIRECTORY --source DIRECTORY [--seconds S] [--sync]

DIRECTORY is that of the namespaces.  Writers take the lists of --source and replace each by a rename, once, or again
and again for --seconds; --sync makes each durable as a careful program does on any file system.  Readers read lists at
random, with --pause between two.  What it came to goes to standard output as JSON.

Owns: what a client does to one list, and how long that took.
Does not know: what is mounted there.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.measure import percentile
from tagfs.names import LIST

Answer = tuple[list[float], float]
"""Seconds of each list; CPU seconds of the client."""


def read(number: int, paths: list[str], seconds: float, pause: float) -> list[float]:
    """Read lists at random; -> seconds that each took."""
    chance = random.Random(number)
    took = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        descriptor = os.open(chance.choice(paths), os.O_RDONLY)
        while os.read(descriptor, 1 << 17):
            pass
        os.close(descriptor)
        took.append(time.perf_counter() - began)
        if pause:
            time.sleep(pause)
    return took


def write(number: int, count: int, directory: Path, source: Path, seconds: float, is_synced: bool) -> list[float]:
    """Replace the share of this writer, one list after another; -> seconds that each took."""
    every = sorted(source.glob(f"*/*/{LIST}"))[number::count]
    contents = [(path.relative_to(source).parent, path.read_bytes()) for path in every]
    for repository, _ in contents:
        (directory / repository).mkdir(parents=True, exist_ok=True)
    took: list[float] = []
    end = time.perf_counter() + seconds
    turn = 0
    while seconds == 0 or time.perf_counter() < end:
        for repository, plain in contents:
            began = time.perf_counter()
            # A list that is as it was is not written: each turn takes the last tags away or puts them back.
            shown = plain if turn % 2 == 0 else plain[: plain.rindex(b"\n", 0, -1) + 1]
            _replace(directory / repository, shown, number, is_synced)
            took.append(time.perf_counter() - began)
            if seconds and time.perf_counter() >= end:
                break
        turn += 1
        if seconds == 0:
            break
    return took


def _replace(repository: Path, plain: bytes, number: int, is_synced: bool) -> None:
    scratch = f"{repository}/{LIST}{1000 + number}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, plain)
    if is_synced:
        os.fsync(descriptor)
    os.close(descriptor)
    os.rename(scratch, f"{repository}/{LIST}")
    if is_synced:
        above = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(above)
        os.close(above)


def _child(number: int, arguments: argparse.Namespace, barrier: Barrier, results: "SimpleQueue[Answer]") -> None:
    where: Path = arguments.directory
    if arguments.work == "read":
        paths = [str(path) for path in where.glob(f"{arguments.namespace}/*/{LIST}")]
        barrier.wait()
        took = read(number, paths, arguments.seconds, arguments.pause)
    else:
        barrier.wait()
        took = write(number, arguments.count, where, arguments.source, arguments.seconds, arguments.sync)
    results.put((took, time.process_time()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("read", "write"))
    parser.add_argument("count", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--namespace", default="*")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--sync", action="store_true")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[Answer] = context.SimpleQueue()
    barrier = context.Barrier(arguments.count + 1)
    children = [
        context.Process(target=_child, args=(number, arguments, barrier, results)) for number in range(arguments.count)
    ]
    for child in children:
        child.start()
    barrier.wait()
    began = time.perf_counter()
    answers = [results.get() for _ in children]
    wall = time.perf_counter() - began
    for child in children:
        child.join()
    took = [seconds for one, _ in answers for seconds in one]
    milliseconds = {f"p{percent:g}": percentile(took, percent) * 1000 for percent in (50, 99, 99.9)}
    print(json.dumps({"lists": len(took), "wall_s": wall, "cpu_s": sum(cpu for _, cpu in answers), **milliseconds}))


if __name__ == "__main__":
    main()
