"""What a mount says while things go wrong: once at each change of state, as JSON, and no list and no token."""

import json
import os
import re
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import shell
from tests.support.scrape import WATCHED, ClusterThread, Watched

pytestmark = pytest.mark.mount

ANYTHING = (".",)
"""These tests look at the messages themselves."""

SECRET_TAGS = "".join(f"unannounced-product-{number}\n" for number in range(200))


def count(daemon: Daemon, pattern: str) -> int:
    return len([message for message in daemon.messages() if re.search(pattern, message)])


def test_no_line_holds_a_list_or_a_token_at_any_level(daemons: MakeDaemon, tmp_path: Path) -> None:
    with ClusterThread(tmp_path / "cluster") as cluster:
        token = (tmp_path / "cluster" / "token").read_text()
        daemon = daemons(
            *WATCHED, *cluster.flags, "--gc-interval", "0.02", "--log-level", "debug", start=False, expected=ANYTHING
        )
        daemon.environment = cluster.environment
        daemon.start()
        path = daemon.make("web")
        path.write_text(SECRET_TAGS)
        # Refused in every way that there is, with the list before what is wrong in it.
        for content, how in (
            (SECRET_TAGS + "two words\n", "tags.txt"),
            (SECRET_TAGS + "unfinished", "tags.txt"),
            (SECRET_TAGS + "a b\n", "scratch"),
        ):
            shell(f"cd {path.parent} && printf '%s' '{content}' > {how}; mv scratch tags.txt; true")
        path.rename(path.with_name("away"))
        cluster.stop()
        daemon.await_message("cannot be followed")
        cluster.start()
        daemon.await_message("followed again")
        daemon.await_message("sweep: ")
        os.unlink(path.with_name("away"))
        daemon.stop()
    said = json.dumps(daemon.log) + "\n".join(daemon.ready_lines)
    assert len(daemon.log) > 10
    assert "unannounced-product" not in said
    assert token not in said


def test_a_store_that_comes_and_goes_is_told_once_each_time(daemons: MakeDaemon) -> None:
    daemon = daemons("--read-only", *WATCHED, start=False, expected=ANYTHING)
    daemon.store.mkdir()
    (daemon.store / ".storage-version").write_text("2\n")
    watched = Watched(daemon.start())
    away = daemon.store.with_name("away")
    for times in (1, 2):
        daemon.store.rename(away)
        eventually(lambda: watched.get("/readyz")[0] == 503)
        for _ in range(20):  # programs that run into it are answered, and are no news
            with pytest.raises(BlockingIOError):
                os.listdir(daemon.point)
        away.rename(daemon.store)
        eventually(lambda: watched.get("/readyz")[0] == 200)
        # Its log comes through a pipe, and may be read later than what it answers.
        eventually(lambda: len(daemon.messages("error")) >= times)  # noqa: B023
        assert count(daemon, "until it is ready again") == times
    assert len(daemon.messages("error")) == 2


def test_a_cluster_that_is_lost_is_told_once_and_once_when_it_is_back(daemons: MakeDaemon, tmp_path: Path) -> None:
    with ClusterThread(tmp_path / "cluster") as cluster:
        daemon = daemons(*WATCHED, *cluster.flags, "--gc-interval", "0", start=False, expected=ANYTHING)
        daemon.environment = cluster.environment
        watched = Watched(daemon.start())
        eventually(lambda: watched.value("tagfs_inventory_synced") == 1)
        before = watched.value("tagfs_inventory_watch_restarts_total") or 0
        cluster.stop()
        eventually(lambda: (watched.value("tagfs_inventory_watch_restarts_total") or 0) >= before + 3)
        assert count(daemon, "cannot be followed") == 1
        cluster.start()
        eventually(lambda: watched.value("tagfs_inventory_synced") == 1)
        daemon.await_message("followed again")
        assert count(daemon, "followed again") == count(daemon, "cannot be followed") == 1


def test_a_damaged_list_is_told_once_however_often_it_is_read(daemons: MakeDaemon) -> None:
    daemon = daemons("--read-only", start=False, expected=ANYTHING)
    directory = daemon.store / "imagerepository" / "team" / "web"
    directory.mkdir(parents=True)
    (daemon.store / ".storage-version").write_text("2\n")
    (directory / "tags.txt.gz").write_bytes(b"\x1f\x8b, and nothing of use after it")
    daemon.start()
    for _ in range(5):
        with pytest.raises(OSError, match="Input/output error"):
            daemon.list_path("web").read_bytes()
    assert count(daemon, re.escape("team/web/tags.txt.gz")) == 1


def test_every_line_is_an_object_with_the_same_fields(daemons: MakeDaemon) -> None:
    daemon = daemons("--log-format", "json", *WATCHED, expected=ANYTHING)
    daemon.make("web").write_text("v1\n")
    daemon.stop()
    assert daemon.log
    for line in daemon.log:
        assert {"time", "level", "logger", "message"} <= set(line)
        assert line["logger"].startswith("tagfs.")
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_sweeps_that_fail_again_and_again_are_told_once(daemons: MakeDaemon, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "bad.yaml").write_text("kind: [\n")
    daemon = daemons("--inventory", f"manifests:{manifests}", "--gc-interval", "0", expected=ANYTHING)
    Path(daemon.make("web")).write_text("v1\n")
    refused = "nothing is deleted, the inventory"
    for _ in range(3):
        before = count(daemon, refused)
        os.kill(daemon.pid, signal.SIGUSR1)
        eventually(lambda before=before: count(daemon, refused) > before)  # type: ignore[misc]
    assert len(daemon.messages("error")) == 1
    (manifests / "bad.yaml").write_text("")
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.await_message("1 orphans are held")
    before = count(daemon, "orphans: 0 deleted")
    os.kill(daemon.pid, signal.SIGUSR1)
    eventually(lambda: count(daemon, "orphans: 0 deleted") > before)
    assert len(daemon.messages("error")) == 2
    (manifests / "bad.yaml").write_text("kind: [\n")
    os.kill(daemon.pid, signal.SIGUSR1)
    eventually(lambda: len(daemon.messages("error")) == 3, "it is news again")
