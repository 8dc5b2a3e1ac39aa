"""Mounts and commands that sweep by what a cluster says, from the command line to the API server's socket."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import MakeDaemon
from tests.support.clusters import keys_of
from tests.support.daemon import Daemon, eventually
from tests.support.fake_api import ServedCluster
from tests.support.programs import Flux
from tests.test_sweep_mounted import LIST, shown, sweep

pytestmark = pytest.mark.mount

MEMORY_LIMIT = 40 << 10
"""KiB of a mount that follows WATCHED objects."""
WATCHED = 5000

FLAGS = ("--inventory", "kubernetes", "--gc-interval", "0")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedCluster]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    with ServedCluster(directory, trustme.CA()) as served:
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig()))
        yield served


def names(cluster: ServedCluster) -> set[str]:
    return {str(key) for key in cluster.fake.alive}


def test_a_mount_follows_a_cluster(daemons: MakeDaemon, cluster: ServedCluster) -> None:
    keys = keys_of("apps", 6)
    cluster.do(cluster.fake.create, keys)
    daemon = daemons(*FLAGS, expected=("cannot be followed", "not complete", "left to the next sweep"))
    flux = Flux(daemon.point)
    for key in (*keys, *keys_of("gone", 2)):
        flux.set_tags(key.name, LIST, key.namespace)
    assert "2 deleted" in sweep(daemon)
    assert shown(daemon.point) == names(cluster)
    cluster.do(cluster.fake.delete, keys[0])
    eventually(lambda: shown(daemon.store) == names(cluster), "a departure")
    assert not daemon.list_path(keys[0].name, "apps").exists()
    cluster.do(cluster.fake.stop)
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.await_message("nothing is deleted, the inventory is not complete")
    assert shown(daemon.point) == names(cluster)
    assert daemon.list_path(keys[1].name, "apps").read_bytes() == LIST
    cluster.do(cluster.fake.start)
    cluster.do(cluster.fake.delete, keys[1])
    eventually(lambda: shown(daemon.store) == names(cluster), "a departure of when the server was away", 60)


def test_a_command_asks_a_cluster(cluster: ServedCluster, tmp_path: Path) -> None:
    keys = keys_of("apps", 3)
    cluster.do(cluster.fake.create, keys[:2], {"shard": "one"})
    flux = Flux.store(tmp_path / "store")
    for key in keys:
        flux.set_tags(key.name, LIST, key.namespace)

    def run(*flags: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tagfs", "sweep", str(tmp_path / "store"), "--inventory=kubernetes", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "apps/app-0002" in run("--dry-run").stdout
    assert run("--watch-label-selector=shard=two").returncode == 10, "an empty inventory"
    assert run("--watch-label-selector=a b c").returncode == 9
    assert run("--watch-label-selector=shard in (one)", "--watch-namespace=apps").returncode == 0
    assert shown(tmp_path / "store") == names(cluster)


def resident_kib(daemon: Daemon) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.slow
def test_a_mount_that_follows_5_000_objects_is_small(daemons: MakeDaemon, cluster: ServedCluster) -> None:
    keys = keys_of("apps", WATCHED)
    cluster.do(cluster.fake.create, keys)
    cluster.fake.ballast = 1500 * "x"  # managedFields and the like, of which a real API server sends as much
    daemon = daemons(*FLAGS)
    flux = Flux(daemon.point)
    for key in keys[:50]:
        flux.set_tags(key.name, LIST, key.namespace)
    for _ in range(3):
        assert f"50 lists, {WATCHED} expected" in sweep(daemon)
    cluster.do(cluster.fake.delete, keys[0])
    eventually(lambda: not daemon.list_path(keys[0].name, "apps").exists(), "a departure")
    # As in a pod: a kubeconfig in JSON costs no more than none.  What a sweep needed is given back after it.
    resident = eventually(lambda: (found := resident_kib(daemon)) <= MEMORY_LIMIT and found, "its memory")
    print(f"{WATCHED} objects followed, 4 lists of them all: {resident / 1024:.1f} MiB resident")
