"""docs/semantics.md, the changes that are told."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tagfs import taglist
from tagfs.names import RepositoryKey
from tests.support.daemon import Daemon
from tests.support.listening import listen, write

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]

APP = RepositoryKey("team", "app")


def test_s62_s64_whoever_opens_it_is_told_every_change(mounted: Daemon) -> None:
    listeners = [listen(mounted), listen(mounted)]
    for number in range(5):
        write(mounted, APP, b"v1\nv2.%d\n" % number)
        for listener in listeners:
            event = listener.expect("list.changed")
            assert event["subject"] == "team/app" and event["data"]["added"] == [f"v2.{number}"]


def test_s64_who_is_told_of_a_list_reads_no_older_one(mounted: Daemon) -> None:
    listener = listen(mounted)
    for number in range(60):
        key = RepositoryKey("team", f"new{number // 2}")
        # The kernel keeps that it is not there, then that it is this one.
        path = mounted.list_path(key.name)
        assert path.exists() == (number % 2 == 1)
        write(mounted, key, b"v%d\n" % number)
        event = listener.next()
        assert event is not None and event["subject"] == str(key)
        assert taglist.revision(path.read_bytes()) == event["data"]["revision"]


def test_s64_programs_that_walk_the_mount_go_past_it(mounted: Daemon, tmp_path: Path) -> None:
    assert ".changes" not in os.listdir(mounted.point)
    for command in (["grep", "-r", "v1", str(mounted.point)], ["cp", "-r", str(mounted.point), str(tmp_path / "copy")]):
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert (tmp_path / "copy" / "imagerepository/team/app/tags.txt").read_bytes() == b"v1\n"


def test_s65_a_slow_reader_is_told_that_it_lost_lines(mounted: Daemon) -> None:
    quick = listen(mounted)
    with open(mounted.point / ".changes", "rb") as slow:
        assert json.loads(slow.readline())["type"] == "io.tagfs.ready"
        rounds = 24  # of 300 KiB: more than the pipe, this reader's buffer, and what waits for it
        for number in range(rounds):
            write(mounted, APP, taglist.encode(f"v{number}.{patch:06}" for patch in range(14_000)))
            quick.expect("list.changed")
        told = lost = 0
        while told + lost < rounds:
            event = json.loads(slow.readline())
            if event["type"] == "io.tagfs.overflow":
                lost += event["data"]["lost"]
            else:
                told += 1
        assert lost > 0 and told > 0
        write(mounted, APP, b"v2\n")
        assert json.loads(slow.readline())["data"]["count"] == 1
