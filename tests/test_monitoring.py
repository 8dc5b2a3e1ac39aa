"""What a real mount tells machines: its figures, its health, and why it is not ready."""

import gzip
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tagfs.endings import USAGE
from tagfs.metrics import METRICS
from tagfs.names import RepositoryKey
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import tags
from tests.support.scrape import WATCHED, ClusterThread, Watched

pytestmark = pytest.mark.mount

LIST = tags(500).encode()


@pytest.fixture
def watched(daemons: MakeDaemon) -> Watched:
    return Watched(daemons(*WATCHED, expected=("not a tag|not committed|refused",)))


def write(daemon: Daemon, name: str, content: bytes) -> None:
    """Durable when it returns."""
    with daemon.make(name).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def test_requests_and_commits_are_counted(watched: Watched) -> None:
    write(watched.daemon, "web", LIST)
    assert watched.daemon.list_path("web").read_bytes() == LIST
    bad = os.open(watched.daemon.make("bad"), os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):
        os.write(bad, b"not a tag\n")
    with pytest.raises(OSError):
        os.close(bad)
    assert watched.value("tagfs_requests_total", operation="fsync", result="ok") == 1
    assert watched.value("tagfs_requests_total", operation="write", result="EINVAL") == 1
    reads = watched.value("tagfs_requests_total", operation="read", result="ok")
    assert reads is not None and reads >= 1
    assert watched.value("tagfs_request_duration_seconds_count", operation="read") == reads
    assert watched.value("tagfs_commits_total", result="done") == 1
    assert watched.value("tagfs_commit_duration_seconds_count") == 1


def test_lists_tags_and_bytes_follow_what_is_written(watched: Watched) -> None:
    def figures() -> list[float | None]:
        return [watched.value(f"tagfs_{name}") for name in ("lists", "tags", "plain_bytes", "corrupt_lists")]

    eventually(lambda: figures() == [0, 0, 0, 0])
    write(watched.daemon, "web", LIST)
    write(watched.daemon, "api", b"v1\n")
    eventually(lambda: figures() == [2, 501, len(LIST) + 3, 0])
    stored = watched.value("tagfs_stored_bytes")
    assert stored == sum(file.stat().st_size for name in ("web", "api") for file in watched.daemon.stored(name))
    watched.daemon.list_path("web").unlink()
    eventually(lambda: figures() == [1, 1, 3, 0])


def test_a_read_only_mount_counts_what_changes_beneath(daemons: MakeDaemon) -> None:
    writer = daemons()
    write(writer, "web", LIST)
    watched = Watched(daemons("--read-only", *WATCHED))
    eventually(lambda: watched.value("tagfs_tags") == 500)
    write(writer, "api", b"v1\nv2\n")
    eventually(lambda: watched.value("tagfs_tags") == 502)
    assert watched.daemon.list_path("web").read_bytes() == LIST
    write(writer, "web", b"v1\n")
    eventually(lambda: watched.daemon.list_path("web").read_bytes() == b"v1\n")
    eventually(lambda: watched.value("tagfs_notifications_total"), "the kernel is told to forget what it kept")
    assert watched.value("tagfs_commits_total", result="done") is None
    assert watched.value("tagfs_sweep_interval_seconds") is None


def test_a_damaged_list_is_counted_and_logged(daemons: MakeDaemon, tmp_path: Path) -> None:
    directory = tmp_path / "store" / "imagerepository" / "team" / "web"
    directory.mkdir(parents=True)
    (tmp_path / "store" / ".storage-version").write_text("2\n")
    (directory / "tags.txt.gz").write_bytes(gzip.compress(LIST)[:-9])
    watched = Watched(daemons("--read-only", *WATCHED))
    eventually(lambda: watched.value("tagfs_corrupt_lists") == 1)
    watched.daemon.await_message("lists that cannot be read: 1")
    assert watched.value("tagfs_log_messages_total", level="error") == 1


def test_every_metric_is_one_that_a_mount_tells(daemons: MakeDaemon, tmp_path: Path) -> None:
    """All of them at once: a cluster for its inventory, a store that was counted, a commit, a sweep."""
    with ClusterThread(tmp_path / "cluster") as cluster:
        daemon = daemons(*WATCHED, *cluster.flags, "--gc-interval", "0.01", start=False)
        daemon.environment = cluster.environment
        cluster.create(RepositoryKey("team", "web"))
        watched = Watched(daemon.start())
        write(daemon, "web", LIST)

        def told() -> set[str]:
            names = {name for name, _ in watched.samples()}
            return {
                metric.name for metric in METRICS if names & {metric.name, f"{metric.name}_sum", f"{metric.name}_count"}
            }

        eventually(lambda: told() == {metric.name for metric in METRICS}, "every metric to be told")


# -- health


def test_health_is_asked_through_the_mount(watched: Watched) -> None:
    assert watched.get("/healthz") == (200, "the loop runs, the mount answers\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_who_serves_without_privileges_asks_all_the_same(daemons: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.chown(tmp_path / "store", 65534, 65534)
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    daemon = daemons("--drop-privileges", "--drop-user=65534", "--allow-other", *WATCHED)
    assert Watched(daemon).get("/healthz") == (200, "the loop runs, the mount answers\n")
    assert Watched(daemon).get("/readyz")[0] == 200
    assert Watched(daemon).value("process_resident_memory_bytes")


def test_a_mount_that_was_taken_away_is_not_healthy(watched: Watched) -> None:
    # Out of sight, while an open file keeps the daemon at work.
    write(watched.daemon, "web", LIST)
    with watched.daemon.list_path("web").open("rb"):
        subprocess.run(["umount", "--lazy", str(watched.daemon.point)], check=True)
        status, said = watched.get("/healthz")
        assert (status, said) == (
            503,
            f"{watched.daemon.point} is no longer this mount: it was unmounted, or something is mounted over it\n",
        )


def test_a_daemon_that_hangs_answers_no_probe(watched: Watched) -> None:
    assert watched.get("/healthz")[0] == 200
    os.kill(watched.daemon.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            watched.get("/healthz", patience=0.5)
    finally:
        os.kill(watched.daemon.pid, signal.SIGCONT)
    assert watched.get("/healthz")[0] == 200


def test_a_mount_ends_at_once_while_somebody_probes_it(watched: Watched) -> None:
    url = f"http://127.0.0.1:{watched.port('/healthz')}/healthz"
    with urllib.request.urlopen(url) as answer:
        assert answer.status == 200
        assert watched.daemon.stop() == 0


# -- readiness


def test_a_store_that_is_shown_is_ready(watched: Watched) -> None:
    assert watched.get("/readyz") == (200, "mounted, the store is shown, what ought to exist is known\n")


def test_a_store_that_is_waited_for_is_not_ready_and_says_why(daemons: MakeDaemon, tmp_path: Path) -> None:
    daemon = daemons("--read-only", *WATCHED, start=False, expected=("is not there yet", "is not prepared"))
    watched = Watched(daemon.start(wait=False))
    daemon.await_line("waits for its store")
    assert watched.get("/readyz") == (503, f"store: {tmp_path}/store is not there yet\n")
    assert watched.get("/healthz")[0] == 200
    assert watched.value("tagfs_store_ready") == 0
    assert watched.value("tagfs_store_size_bytes") is None
    daemon.store.mkdir()
    (daemon.store / ".storage-version").write_text("2\n")
    eventually(lambda: watched.get("/readyz")[0] == 200)
    assert watched.value("tagfs_store_ready") == 1
    daemon.store.rename(tmp_path / "elsewhere")
    daemon.await_message("until it is ready again")
    eventually(lambda: watched.get("/readyz")[0] == 503)
    (tmp_path / "elsewhere").rename(daemon.store)
    eventually(lambda: watched.get("/readyz")[0] == 200)


def test_a_cluster_that_was_never_reached_is_not_ready_and_one_that_is_lost_stays_so(
    daemons: MakeDaemon, tmp_path: Path
) -> None:
    with ClusterThread(tmp_path / "cluster") as cluster:
        daemon = daemons(*WATCHED, *cluster.flags, "--gc-interval", "0", start=False)
        daemon.environment = cluster.environment
        cluster.stop()
        watched = Watched(daemon.start())
        daemon.await_message("cannot be followed")
        assert watched.get("/readyz") == (503, "inventory: kubernetes has not told yet what ought to exist\n")
        assert watched.value("tagfs_inventory_synced") == 0
        cluster.start()
        eventually(lambda: watched.get("/readyz")[0] == 200, patience=60)
        assert watched.value("tagfs_inventory_synced") == 1
        restarts = watched.value("tagfs_inventory_watch_restarts_total")
        assert restarts is not None and restarts > 0
        cluster.stop()
        eventually(lambda: watched.value("tagfs_inventory_synced") == 0)
        assert watched.get("/readyz")[0] == 200


# -- settings


def test_one_address_serves_both(daemons: MakeDaemon) -> None:
    daemon = daemons("--metrics-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0")
    port = Watched(daemon).port("/metrics")
    assert Watched(daemon).get("/readyz")[0] == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
        assert answer.status == 200


def test_an_address_that_is_taken_refuses_to_mount(watched: Watched, daemons: MakeDaemon, tmp_path: Path) -> None:
    port = watched.port("/metrics")
    other = daemons(
        "--metrics-addr", f"127.0.0.1:{port}", store=tmp_path / "other", start=False, expected=("nothing can listen",)
    )
    other.start(wait=False)
    assert other.wait() == USAGE
    assert not os.path.ismount(other.point)
    assert f"nothing can listen on 127.0.0.1:{port}" in str(other.log[-1]["message"])


def test_without_the_extra_it_is_refused_with_what_to_install(daemons: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "h11.py").write_text("raise ImportError('no h11 here')")
    daemon = daemons("--health-addr", "127.0.0.1:0", start=False, expected=("need more",))
    daemon.environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    daemon.start(wait=False)
    assert daemon.wait() == USAGE
    assert "(no h11 here): pip install 'tagfs[monitoring]'" in str(daemon.log[-1]["message"])
    assert not os.path.ismount(daemon.point)


def test_nothing_of_it_is_imported_where_it_is_not_asked_for(tmp_path: Path) -> None:
    program = "import sys, tagfs.mount; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "tagfs.mount" in modules
    assert not {"h11", "tagfs.monitoring", "tagfs.metrics", "tagfs.figures"} & set(modules)
