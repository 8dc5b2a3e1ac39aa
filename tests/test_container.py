"""The image of the Dockerfile, run as a pod would run it: one container mounts, others read what it shows."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import eventually
from tests.support.programs import tags

IMAGE = os.environ.get("TAGFS_IMAGE")
RUNTIME = Path(__file__).parent / "container" / "runc"

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(IMAGE is None, reason="make test-container builds the image and runs this"),
    pytest.mark.timeout(300),
]


def podman(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["podman", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done


class Pod:
    """Containers that share two directories: the store, and the parent of the mount.  All have their root read-only."""

    def __init__(self, directory: Path) -> None:
        self.store, self.lists = directory / "store", directory / "lists"
        self.store.mkdir()
        self.lists.mkdir()
        self.point = self.lists / "tags"
        self._names: list[str] = []
        self._directory = directory
        for command in (["mount", "--bind", self.lists, self.lists], ["mount", "--make-shared", self.lists]):
            subprocess.run([*map(str, command)], check=True)

    def run(self, *arguments: object, name: str | None = None, flags: tuple[object, ...] = ()) -> str:
        """-> what it printed; with a name it goes on in the background."""
        life: list[object] = ["--rm"]
        if name is not None:
            self._names.append(f"{self._directory.name}-{name}")
            life = ["--detach", "--name", self._names[-1]]
        common = ["--runtime", RUNTIME, "--network", "host", "--read-only"]
        return podman("run", *life, *common, *flags, IMAGE, *arguments).stdout.strip()

    def serve(self, *flags: object, name: str = "tagfs") -> str:
        """Mount; -> the container."""
        volumes = ("--volume", f"{self.store}:/store", "--volume", f"{self.lists}:/lists:shared")
        given = ("mount", "--make-mountpoint", "--allow-other", *flags, "/store", "/lists/tags")
        container = self.run(*given, name=name, flags=("--user", 0, "--privileged", *volumes))
        eventually(self.is_shown, "the mount", 60)
        return container

    def is_shown(self) -> bool:
        try:
            return (self.point / ".storage-version").exists()
        except OSError:  # mounted, and the store not open yet
            return False

    def reader(self) -> str:
        """A container that stays, unprivileged, and sees mounts that are made later."""
        volume = ("--volume", f"{self.lists}:/lists:slave,ro")
        return self.run("infinity", name="reader", flags=("--entrypoint", "sleep", *volume))

    def end(self) -> None:
        for name in reversed(self._names):
            podman("rm", "--force", "--time", 10, name, check=False)
        while subprocess.run(["umount", "--lazy", str(self.point)], capture_output=True, check=False).returncode == 0:
            pass
        subprocess.run(["umount", "--lazy", str(self.lists)], check=True)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    try:
        yield pod
    finally:
        pod.end()


def read(container: str, name: str = "app") -> subprocess.CompletedProcess[str]:
    return podman("exec", container, "cat", f"/lists/tags/imagerepository/team/{name}/tags.txt", check=False)


def write(pod: Pod, content: str, name: str = "app") -> None:
    directory = pod.point / "imagerepository" / "team" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tags.txt").write_text(content)


def test_who_mounts_nothing_needs_no_rights(pod: Pod) -> None:
    assert pod.run("--version").startswith("tagfs ")
    (pod.store / ".storage-version").write_text("2\n")
    said = pod.run("status", "/store", flags=("--cap-drop", "all", "--volume", f"{pod.store}:/store:ro"))
    assert "0" in said and "lists" in said


def test_a_reader_in_another_container_outlives_a_killed_daemon(pod: Pod) -> None:
    reader = pod.reader()  # before there is a mount: it is shown what is mounted later
    container = pod.serve()
    write(pod, tags(500))
    assert eventually(lambda: read(reader).stdout == tags(500))
    podman("kill", "--signal", "KILL", container)
    podman("wait", container)
    failed = read(reader)
    assert failed.returncode != 0 and os.strerror(errno.ENOTCONN) in failed.stderr
    podman("start", container)
    assert eventually(lambda: read(reader).stdout == tags(500), "the reader sees the mount of the next daemon", 60)
    write(pod, "v1\n", "another")
    assert read(reader, "another").stdout == "v1\n"


def test_a_stop_unmounts_within_the_time_of_a_pod(pod: Pod) -> None:
    container = pod.serve()
    write(pod, tags(500))
    podman("stop", "--time", 10, container)
    assert podman("wait", container).stdout.strip() == "0"
    assert not os.path.ismount(pod.point)
    assert pod.run("check", "/store", flags=("--volume", f"{pod.store}:/store:ro", "--user", 0))


def test_who_serves_has_no_rights_and_reads_what_flux_wrote(pod: Pod) -> None:
    os.chown(pod.store, 0, 1337)
    pod.store.chmod(0o2775)
    container = pod.serve("--drop-privileges", "--drop-user=65534:1337")
    write(pod, tags(500))
    lists = pod.store / "imagerepository" / "team" / "app"
    eventually(lambda: any(lists.iterdir()), "the commit")
    assert {(one.stat().st_uid, one.stat().st_gid) for one in lists.iterdir()} == {(65534, 1337)}
    effective = podman("top", container, "hpid").stdout.split()[1:]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in effective]
    assert any("CapEff:\t0000000000000000\n" in text for text in status), "the process that serves"
    podman("stop", "--time", 10, container)
    assert podman("wait", container).stdout.strip() == "0"
    reader = pod.reader()
    pod.serve("--read-only", "--drop-privileges", "--drop-user=65534:1337", name="window")
    assert read(reader).stdout == tags(500)


def test_a_window_starts_before_the_store_is_there(pod: Pod) -> None:
    """The order of a pod: the sidecar answers, then the controller starts and makes the store."""
    reader = pod.reader()
    pod.run(
        *("mount", "--read-only", "--make-mountpoint", "--allow-other", "/store", "/lists/tags"),
        name="tagfs",
        flags=(
            "--user",
            0,
            "--privileged",
            "--volume",
            f"{pod.store}:/store:ro",
            "--volume",
            f"{pod.lists}:/lists:shared",
        ),
    )
    eventually(lambda: os.path.ismount(pod.point), "the mount", 60)
    early = read(reader)
    assert early.returncode != 0 and os.strerror(errno.EAGAIN) in early.stderr
    repository = pod.store / "imagerepository" / "team" / "app"
    repository.mkdir(parents=True)
    (repository / "tags.txt").write_text(tags(3))
    (pod.store / ".storage-version").write_text("2\n")
    assert eventually(lambda: read(reader).stdout == tags(3), "the list of the store that was made since", 60)


def test_a_stop_under_load_keeps_what_was_acknowledged(pod: Pod) -> None:
    container = pod.serve()
    acknowledged = dict.fromkeys((f"app-{number}" for number in range(8)), 0)
    ended = threading.Event()

    def replace(name: str) -> None:
        directory = pod.point / "imagerepository" / "team" / name
        directory.mkdir(parents=True, exist_ok=True)
        while not ended.is_set():
            try:
                (directory / "tags.txt1").write_text(tags(acknowledged[name] + 1))
                (directory / "tags.txt1").rename(directory / "tags.txt")
            except OSError:
                return  # the mount has ended; this one is not acknowledged
            acknowledged[name] += 1

    workers = [threading.Thread(target=replace, args=(name,)) for name in acknowledged]
    for worker in workers:
        worker.start()
    eventually(lambda: all(acknowledged.values()), "every writer at work")
    podman("stop", "--time", 10, container)
    ended.set()
    for worker in workers:
        worker.join()
    assert podman("wait", container).stdout.strip() == "0", "not killed at the end of its grace period"
    pod.serve(name="again")
    for name, count in acknowledged.items():
        found = (pod.point / "imagerepository" / "team" / name / "tags.txt").read_text()
        assert found in (tags(count), tags(count + 1)), name
