"""Data sets: deterministic tag lists that look like real ones, and the real ones; as plain files and as a store.

Owns: what a list looks like, how lists spread over namespaces, both trees on the disk.
Does not know: who reads them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tagfs.names import BASE, LIST, VERSION_SENTINEL
from tagfs.policy import Policy
from tagfs.sentinel import ZSTD_FORMAT

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "official-images"

_IN_A_NAMESPACE = 100
_VARIANTS = ("", "-alpine", "-alpine3.19", "-alpine3.20", "-bookworm", "-slim", "-slim-bookworm", "-windowsservercore")
_HEXADECIMAL = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class DataSet:
    """`lists` lists of `tags` tags each; `tags` None: the real ones."""

    name: str
    lists: int
    tags: int | None

    def every(self) -> Iterator[tuple[str, bytes]]:
        """(`namespace/name`, plain bytes) of each list, the same ones whenever they are asked for."""
        for number, name in enumerate(self.names()):
            if self.tags is None:
                yield name, (EXAMPLES / f"{name.partition('/')[2]}.txt").read_bytes()
            else:
                yield name, make_list(number, self.tags)

    def names(self) -> list[str]:
        """The same without the lists, which take long to make."""
        if self.tags is None:
            return [f"official-images/{path.stem}" for path in sorted(EXAMPLES.glob("*.txt"))]
        return [name_of(number) for number in range(self.lists)]


def synthetic(lists: int, tags: int) -> DataSet:
    return DataSet(f"{lists:,} × {tags:,} tags", lists, tags)


def real() -> DataSet:
    return DataSet("the real lists", len(list(EXAMPLES.glob("*.txt"))), None)


def name_of(number: int) -> str:
    return f"team-{number // _IN_A_NAMESPACE:03}/service-{number:06}"


def make_list(number: int, tags: int) -> bytes:
    """A list of exactly `tags` tags, sorted; `number` chooses among the three ways in which most images are tagged."""
    chance = random.Random(number)
    make = (_releases, _builds, _candidates)[number % 3]
    return b"".join(b"%b\n" % tag.encode() for tag in sorted(make(chance, tags)))


def write(data: DataSet, plain_root: Path | None, store_root: Path | None) -> None:
    """The lists as plain files, as a mount shows them, and as a store of format 3, written without a sync."""
    policy = Policy()
    if store_root is not None:
        store_root.mkdir(parents=True)
        (store_root / VERSION_SENTINEL).write_text(f"{ZSTD_FORMAT}\n")
    for name, plain in data.every():
        if plain_root is not None:
            directory = plain_root / BASE / name
            directory.mkdir(parents=True)
            (directory / LIST).write_bytes(plain)
        if store_root is not None:
            directory = store_root / BASE / name
            directory.mkdir(parents=True)
            codec = policy.codec_for(len(plain))
            (directory / (LIST + codec.suffix)).write_bytes(codec.encode(plain))


def _releases(chance: random.Random, tags: int) -> list[str]:
    """1.2.3, 1.2.3-alpine3.20, …: versions that count up, each in some variants, as official images are tagged."""
    made: list[str] = []
    major, minor, patch = chance.randint(0, 3), chance.randint(0, 9), 0
    while len(made) < tags:
        version = f"{major}.{minor}.{patch}"
        made += [version + variant for variant in _VARIANTS[: chance.randint(2, len(_VARIANTS))]]
        patch += 1
        if chance.random() < 0.2:
            minor, patch = minor + 1, 0
        if chance.random() < 0.01:
            major, minor = major + 1, 0
    return made[:tags]


def _builds(chance: random.Random, tags: int) -> list[str]:
    """main-1a2b3c4-1718000000: a branch, a commit and a time, as Flux's guide has images of each commit tagged."""
    moment = 1_600_000_000 + chance.randint(0, 10_000_000)
    made = []
    for _ in range(tags):
        moment += chance.randint(600, 90_000)
        commit = "".join(chance.choices(_HEXADECIMAL, k=7))
        made.append(f"{'main' if chance.random() < 0.8 else 'develop'}-{commit}-{moment}")
    return made


def _candidates(chance: random.Random, tags: int) -> list[str]:
    """v1.2.3 and v1.2.3-rc.1: versions with their candidates, as a project's own images are tagged."""
    made: list[str] = []
    major, minor, patch = chance.randint(0, 2), 0, 0
    while len(made) < tags:
        version = f"v{major}.{minor}.{patch}"
        made += [f"{version}-rc.{number}" for number in range(1, chance.randint(1, 4))]
        made.append(version)
        patch += 1
        if chance.random() < 0.15:
            minor, patch = minor + 1, 0
        if chance.random() < 0.005:
            major, minor = major + 1, 0
    return made[:tags]
