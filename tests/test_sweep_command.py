"""`tagfs sweep`: what it tells, what it deletes, whom it refuses to, and what it ends with."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagfs.disk import Disk
from tagfs.holder import take
from tagfs.names import RepositoryKey
from tests.conftest import MakeDaemon
from tests.support.stores import LARGE, SMALL, open_store, write_natively

Done = subprocess.CompletedProcess[str]
Declare = Callable[..., Path]

LIVING, ORPHAN, LONELY = RepositoryKey("apps", "web"), RepositoryKey("apps", "old"), RepositoryKey("gone", "x")


def an_object(key: RepositoryKey) -> str:
    return (
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepository\n"
        f"metadata:\n  name: {key.name}\n  namespace: {key.namespace}\n---\n"
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    made = open_store(Disk(), str(path))
    made.replace(LIVING, LARGE)
    made.replace(ORPHAN, LARGE)
    made.replace(LONELY, SMALL)
    made.close()
    return path


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """A tree that declares LIVING."""
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "web.yaml").write_text(an_object(LIVING))
    return path


def sweep(store: Path, *flags: object, given: str | None = None, **variables: str) -> Done:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAGFS_")}
    done = subprocess.run(
        [sys.executable, "-m", "tagfs", "sweep", str(store), *map(str, flags)],
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/nonexistent", **variables},
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lists(store: Path) -> set[str]:
    return {str(path.parent.relative_to(store / "imagerepository")) for path in store.glob("imagerepository/*/*/tags*")}


def everything(store: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in [store, *store.rglob("*")]}


def test_orphans_go_and_are_told(store: Path, manifests: Path) -> None:
    done = sweep(store, f"--inventory=manifests:{manifests}")
    assert done.returncode == 0, done.stderr
    assert lists(store) == {"apps/web"}
    assert not (store / "imagerepository/gone").exists()
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("orphans\t")]
    assert [row[1:5] for row in rows] == [
        ["apps/old", "deleted", "200", str(len(LARGE))],
        ["gone/x", "deleted", "2", str(len(SMALL))],
    ]
    pairs = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert (pairs["lists"], pairs["expected"], pairs["orphans"], pairs["deleted"]) == ("3", "1", "2", "2")
    assert "apps/old: an orphan, deleted" in done.stderr
    again = sweep(store, f"--inventory=manifests:{manifests}")
    assert (again.returncode, "orphans: 0" in again.stdout) == (0, True)


def test_a_dry_run_tells_the_same_and_writes_nothing(store: Path, manifests: Path) -> None:
    before = everything(store)
    done = sweep(store, f"--inventory=manifests:{manifests}", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert everything(store) == before
    assert (told["dry_run"], told["lists"], told["expected"], told["refusal"]) == (True, 3, 1, None)
    assert told["namespaces"] == ["gone"]
    assert [one["repository"] for one in told["orphans"]] == ["apps/old", "gone/x"]
    first = told["orphans"][0]
    assert (first["state"], first["tags"], first["plain_bytes"]) == ("orphan", 200, len(LARGE))
    assert 0 < first["stored_bytes"] < len(LARGE)
    swept = json.loads(sweep(store, f"--inventory=manifests:{manifests}", "--json").stdout)
    assert [one["repository"] for one in swept["orphans"]] == ["apps/old", "gone/x"]


def test_rendered_manifests_come_by_standard_input(store: Path, manifests: Path) -> None:
    done = sweep(store, "--inventory", "manifests:-", given=an_object(LIVING) + an_object(ORPHAN))
    assert done.returncode == 0, done.stderr
    assert lists(store) == {"apps/web", "apps/old"}
    both = sweep(store, "--inventory=manifests:-", f"--inventory=manifests:{manifests}", given=an_object(ORPHAN))
    assert both.returncode == 0
    assert lists(store) == {"apps/web", "apps/old"}


def test_patterns_and_variables(store: Path, manifests: Path) -> None:
    (manifests / "templates").mkdir()
    (manifests / "templates/x.yaml").write_text("{{- if x }}\na: b: c\n")
    (manifests / "other.yaml").write_text(an_object(ORPHAN))
    variables = {"TAGFS_INVENTORY": f"manifests:{manifests}", "TAGFS_MANIFESTS_IGNORE": "templates"}
    assert sweep(store, "--dry-run").returncode == 2
    assert sweep(store, "--dry-run", TAGFS_INVENTORY=variables["TAGFS_INVENTORY"]).returncode == 9
    assert "gone/x" in sweep(store, "--dry-run", **variables).stdout
    told = sweep(store, "--dry-run", "--json", "--manifests-include=web.yaml", **variables, TAGFS_READ_ONLY="1")
    assert [one["repository"] for one in json.loads(told.stdout)["orphans"]] == ["apps/old", "gone/x"]


def test_manifests_that_cannot_tell_delete_nothing(store: Path, manifests: Path) -> None:
    (manifests / "bad.yaml").write_text("a: 1\nb: [\n")
    done = sweep(store, f"--inventory=manifests:{manifests}")
    assert (done.returncode, done.stdout) == (9, "")
    assert re.fullmatch(rf"tagfs: {manifests}/bad.yaml:3: [^\n]+\n", done.stderr)
    assert len(lists(store)) == 3


def test_an_empty_inventory_and_a_mass_deletion_are_held(store: Path, manifests: Path) -> None:
    done = sweep(store, "--inventory=manifests:-")
    assert done.returncode == 10
    assert "--sweep-allow-empty-inventory" in done.stderr.splitlines()[-1]
    assert [line.split("\t")[2] for line in done.stdout.splitlines() if line.startswith("orphans\t")] == ["held"] * 3
    assert len(lists(store)) == 3
    made = open_store(Disk(), str(store))
    for number in range(30):
        made.replace(RepositoryKey("many", f"r{number}"), b"v1\n")
    made.close()
    flags = (f"--inventory=manifests:{manifests}",)
    assert sweep(store, *flags, "--sweep-max-percent=97", "--dry-run").returncode == 0
    held = sweep(store, *flags, "--dry-run")
    assert held.returncode == 10
    assert "32 of 33 lists" in held.stderr
    for more in ((), ("--dry-run",), ("--sweep-max-percent=97",)):
        held = sweep(store, *flags, *more)
        assert held.returncode == 10
    assert "32 lists were to go in a mass deletion" in held.stderr
    assert len(lists(store)) == 33
    assert sweep(store, *flags, "--allow-mass-deletion").returncode == 0
    assert lists(store) == {"apps/web"}


def test_a_mass_deletion_is_allowed_by_a_flag_and_an_empty_inventory_by_another(store: Path, manifests: Path) -> None:
    made = open_store(Disk(), str(store))
    for number in range(30):
        made.replace(RepositoryKey("many", f"r{number}"), b"v1\n")
    made.close()
    assert sweep(store, f"--inventory=manifests:{manifests}", "--allow-mass-deletion").returncode == 0
    assert lists(store) == {"apps/web"}
    assert sweep(store, "--inventory=manifests:-", "--sweep-allow-empty-inventory").returncode == 0
    assert lists(store) == set()


def test_a_list_that_cannot_be_read_goes_too(store: Path, manifests: Path) -> None:
    [file] = (store / "imagerepository/apps/old").iterdir()
    file.write_bytes(b"no zstd")
    told = json.loads(sweep(store, f"--inventory=manifests:{manifests}", "--json").stdout)["orphans"][0]
    assert (told["state"], told["tags"], told["plain_bytes"], told["stored_bytes"]) == ("deleted", None, None, 7)
    assert lists(store) == {"apps/web"}


def test_a_store_that_flux_has_written_is_swept(tmp_path: Path, manifests: Path) -> None:
    path = tmp_path / "flux"
    path.mkdir()
    (path / ".storage-version").write_text("2\n")
    write_natively(path, LIVING, SMALL, compressed=False)
    write_natively(path, ORPHAN, LARGE, compressed=True)
    assert sweep(path, f"--inventory=manifests:{manifests}").returncode == 0
    assert lists(path) == {"apps/web"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "--inventory"),
        (("--inventory=kubernetes", "--manifests-ignore=x"), "no effect with --inventory kubernetes"),
        (("--inventory=manifests:/m", "--watch-namespace=x"), "no effect with --inventory manifests"),
        (("--inventory=kubernetes", "--watch-all-namespaces=false"), "RUNTIME_NAMESPACE"),
        (("--inventory=nothing",), "kubernetes, or manifests:PATH"),
    ],
)
def test_usage(store: Path, flags: tuple[str, ...], told: str) -> None:
    done = sweep(store, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_what_is_no_store_is_refused(tmp_path: Path, manifests: Path) -> None:
    flags = (f"--inventory=manifests:{manifests}",)
    assert sweep(tmp_path / "nowhere", *flags).returncode == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    for more in ((), ("--dry-run",)):
        assert sweep(tmp_path / "other", *flags, *more).returncode == 3
    assert (tmp_path / "other/file").exists()
    assert sweep(store_of_no_cluster(tmp_path), "--inventory=kubernetes").returncode == 9


def store_of_no_cluster(tmp_path: Path) -> Path:
    path = tmp_path / "made"
    path.mkdir()
    open_store(Disk(), str(path)).close()
    return path


@pytest.fixture
def held(store: Path) -> Iterator[None]:
    disk = Disk()
    root = take(disk, str(store))
    yield
    disk.close(root)


def test_a_store_that_is_held_is_told_and_only_a_dry_run_goes_on(store: Path, manifests: Path, held: None) -> None:
    done = sweep(store, f"--inventory=manifests:{manifests}")
    assert (done.returncode, done.stdout) == (4, "")
    assert f"held by another writer: pid {os.getpid()} (" in done.stderr
    assert f"`kill -USR1 {os.getpid()}` has it sweep now" in done.stderr
    assert len(lists(store)) == 3
    assert sweep(store, f"--inventory=manifests:{manifests}", "--dry-run").returncode == 0


@pytest.mark.mount
def test_a_mount_that_holds_it_is_asked_by_the_signal_that_is_told(
    store: Path, manifests: Path, daemons: MakeDaemon
) -> None:
    daemon = daemons("--inventory", f"manifests:{manifests}", "--gc-interval", "0", store=store)
    done = sweep(store, f"--inventory=manifests:{manifests}")
    assert done.returncode == 4
    told = re.search(r"`kill -USR1 ([0-9]+)`", done.stderr)
    assert told is not None and int(told[1]) == daemon.pid
    refused = sweep(daemon.point, f"--inventory=manifests:{manifests}")
    assert refused.returncode == 3
    assert "name its store" in refused.stderr
    os.kill(int(told[1]), signal.SIGUSR1)
    daemon.await_message("orphans: 2 deleted")
    assert lists(store) == {"apps/web"}
