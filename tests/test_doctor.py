"""`tagfs doctor`: each thing that can be wrong is made wrong, in namespaces and processes of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tagfs import asking, doctor, machine, mountpoint
from tagfs.remarks import Level, Remark
from tests.conftest import MakeDaemon
from tests.support.beneath import put
from tests.support.clusters import keys_of
from tests.support.fake_api import ServedCluster
from tests.support.volumes import tmpfs
from tests.test_stream import APP

pytestmark = pytest.mark.mount

PATIENCE = 60
NOBODY = 65534


APP_WEB = """\
apiVersion: image.toolkit.fluxcd.io/v1
kind: ImageRepository
metadata:
  name: web
  namespace: apps
"""


def settle(directory: Path) -> None:
    """Let manifests be older than what may still be changing."""
    for path in (*directory.iterdir(), directory):
        os.utime(path, (0, 0))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAGFS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path)}


class Told:
    """What a doctor said: subject -> remark, the worst where there are several."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        assert done.returncode in (0, 6), done.stderr
        found = json.loads(done.stdout)
        self.code = done.returncode
        self.remarks: dict[str, Remark] = {}
        for one in found["remarks"]:
            remark = Remark(Level(one["level"]), one["subject"], one["told"], one["cure"] or "")
            assert (remark.level is Level.OK) == (remark.cure == ""), remark
            known = self.remarks.get(remark.subject)
            if known is None or known.level is Level.OK:
                self.remarks[remark.subject] = remark
        levels = [one["level"] for one in found["remarks"]]
        assert (found["failures"], found["warnings"]) == (levels.count("fail"), levels.count("warn"))
        assert (done.returncode == 6) == (found["failures"] > 0)

    def fails(self, subject: str, *parts: str) -> Remark:
        return self._is(subject, Level.FAIL, parts)

    def warns(self, subject: str, *parts: str) -> Remark:
        return self._is(subject, Level.WARN, parts)

    def praises(self, subject: str, *parts: str) -> Remark:
        return self._is(subject, Level.OK, parts)

    def _is(self, subject: str, level: Level, parts: tuple[str, ...]) -> Remark:
        remark = self.remarks[subject]
        assert remark.level is level, remark
        for part in parts:
            assert part in f"{remark.told} → {remark.cure}", remark
        return remark


def ask(*arguments: object, wrapper: tuple[str, ...] = ()) -> Told:
    command = [*wrapper, sys.executable, "-m", "tagfs", "doctor", "--json", *map(str, arguments)]
    return Told(
        subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    )


def ask_after(prelude: str, *arguments: object) -> Told:
    """Ask in a process that has become another by `prelude`, when all was imported: its user may not read the code."""
    code = (
        "import ctypes, os, resource, sys\nfrom tagfs import cli, doctor, logs, report\n"
        f"{prelude}\nsys.exit(cli.main(['doctor', '--json', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return Told(
        subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    )


AS_NOBODY = f"os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put(tmp_path / "store", APP, b"v1\n")
    (tmp_path / "store" / ".storage-version").write_text("3\n")
    return tmp_path / "store"


@pytest.fixture
def point(tmp_path: Path) -> Path:
    (tmp_path / "point").mkdir()
    return tmp_path / "point"


# -- the machine


def test_nothing_is_wrong(store: Path, point: Path) -> None:
    told = ask(store, point)
    assert told.code == 0
    for subject in ("/dev/fuse", "mounting", "inotify", "store", "writer", "space", "mount point"):
        told.praises(subject)
    told.praises("inotify", "4 directories")
    assert "tagfs-doctor" not in Path("/proc/self/mountinfo").read_text()
    assert sorted(os.listdir(store)) == [".storage-version", "imagerepository"]


def test_no_device(store: Path) -> None:
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    ask(wrapper=hidden).fails("/dev/fuse", "there is no /dev/fuse", "modprobe fuse")


def test_root_without_the_capability_cannot_mount() -> None:
    without = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    ask(wrapper=without).fails("mounting", "CAP_SYS_ADMIN is missing", "privileged: true")


def test_a_user_mounts_by_fusermount3() -> None:
    told = ask_after(AS_NOBODY)
    told.praises("fusermount3", "mounts for uid 65534")
    assert "mounting" not in told.remarks


def test_a_user_without_fusermount3(tmp_path: Path) -> None:
    ask_after(f"os.environ['PATH'] = {str(tmp_path)!r}; {AS_NOBODY}").fails(
        "fusermount3", "not installed", "apt install"
    )


def test_fusermount3_that_is_not_setuid(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    fake = tmp_path / "fusermount3"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    prelude = f"os.chdir({str(tmp_path)!r}); os.environ['PATH'] = '.'; {AS_NOBODY}"
    ask_after(prelude).fails("fusermount3", "not setuid root", "chmod u+s")


def test_a_process_that_can_gain_no_rights() -> None:
    no_new_privs = "assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0"
    ask_after(f"{no_new_privs}; {AS_NOBODY}").fails("fusermount3", "no_new_privs", "allowPrivilegeEscalation")


def test_user_allow_other(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    assert machine._others(conf).level is Level.WARN
    conf.write_text("# user_allow_other\n")
    assert machine._others(conf).level is Level.WARN
    conf.write_text("mount_max = 1000\nuser_allow_other\n")
    assert machine._others(conf).level is Level.OK


def test_inotify_without_a_free_instance() -> None:
    """Of a user of its own, so that no other program is left without."""
    all_taken = "libc = ctypes.CDLL(None)\nwhile libc.inotify_init1(0o2000000) >= 0: pass"
    prelude = AS_NOBODY.replace(str(NOBODY), "64321")
    ask_after(f"{prelude}\n{all_taken}").fails("inotify", "no instance is left", "max_user_instances")


def test_watches_against_what_a_store_has() -> None:
    most = machine._limit("watches")
    assert most > 0
    assert machine._watches(most).level is Level.FAIL
    assert machine._watches(most // 2 + 1).level is Level.WARN
    assert machine._watches(most // 2 - 1).level is Level.OK


def test_few_files_may_be_open() -> None:
    ask_after("resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))").warns("open files", "256", "LimitNOFILE")


# -- the store


def test_stores_that_are_none(tmp_path: Path, point: Path) -> None:
    ask(tmp_path / "missing", point).fails("store", "does not exist")
    (tmp_path / "file").touch()
    ask(tmp_path / "file", point).fails("store", "no directory")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.odt").touch()
    ask(foreign, point).fails("store", "thesis.odt")
    assert os.listdir(foreign) == ["thesis.odt"]


def test_stores_that_are_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    ask(path).warns("store", "is empty")
    (path / "MANIFEST").touch()
    ask(path).warns("store", "BadgerDB")
    (path / ".storage-wipe-in-progress").touch()
    ask(path).warns("store", "not finished")
    assert sorted(os.listdir(path)) == [".storage-wipe-in-progress", "MANIFEST"]


def test_who_writes_to_a_store(store: Path, daemons: MakeDaemon) -> None:
    mount = daemons()
    ask(store).praises("writer", f"pid {mount.pid} (", "tagfs mount")
    ask(mount.point / "imagerepository", "/nonexistent").fails("store", "in a mount of", str(store))


def test_who_may_not_write(store: Path) -> None:
    for directory in (store, *store.parents):
        if directory != Path("/tmp"):
            directory.chmod(0o755)
        if directory.parent == Path("/tmp"):
            break
    ask_after(AS_NOBODY, store).warns("writer", "uid 65534 may not write", "--read-only")


def test_file_systems(tmp_path: Path) -> None:
    with tmpfs(tmp_path, "size=256k") as path:
        (path / "store").mkdir()
        ask(path / "store").warns("file system", "tmpfs", "goes with the machine")
        with pytest.raises(OSError, match="No space left"):
            (path / "ballast").write_bytes(bytes(1 << 20))
        ask(path / "store").warns("space", "0.0% of the space", "make room")
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        ask(path / "store").warns("writer", "read-only")


def test_a_container_s_own_layer(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "store"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    script = f'mount -t overlay none {tmp_path}/store -o {layers} && exec "$@"'
    told = ask(tmp_path / "store", wrapper=("unshare", "--mount", "sh", "-c", script, "sh"))
    told.warns("file system", "overlay", "volume")


# -- the mount point


def test_mount_points_that_cannot_be_used(store: Path, tmp_path: Path) -> None:
    ask(store, tmp_path / "missing").fails("mount point", "does not exist", "mkdir -p")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    ask(store, tmp_path / "full").fails("mount point", "not empty")
    ask(store, "/proc").fails("mount point", "is a mount of proc")


def test_a_mount_that_answers(store: Path, daemons: MakeDaemon) -> None:
    mount = daemons("--read-only")
    told = ask(mount.point)
    told.praises("mount", f"shows {store}")
    told.warns("allow_other", "only the user who mounted")
    assert told.code == 0 and "store" not in told.remarks
    others = daemons("--read-only", "--allow-other")
    ask(others.point).praises("allow_other")
    ask(store.parent, others.point).warns("mount", f"shows {store}, not {store.parent}")


def test_a_dead_mount(store: Path, daemons: MakeDaemon) -> None:
    mount = daemons("--read-only")
    mount.kill()
    ask(store, mount.point).fails("mount", "is dead", f"tagfs unmount --lazy {mount.point}")


def test_a_mount_that_hangs(daemons: MakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = daemons()
    monkeypatch.setattr(asking, "DEADLINE", 0.3)
    there = mountpoint.mounted_at(str(mount.point))
    assert there is not None
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        remark = doctor._answer(str(mount.point), there)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert remark.level is Level.FAIL and "does not answer" in remark.told
    assert f"/connections/{there.device[1]}/abort" in remark.cure


def test_a_mount_that_waits(daemons: MakeDaemon, tmp_path: Path) -> None:
    mount = daemons("--read-only", store=tmp_path / "later", start=False, expected=("is not there yet",))
    mount.start(wait=False)
    mount.await_line("waits for its store")
    ask(mount.point).warns("mount", "waits for its store", str(tmp_path / "later"))


def test_only_who_mounts_needs_the_device(store: Path, daemons: MakeDaemon) -> None:
    mount = daemons("--read-only")
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    told = ask(mount.point, wrapper=hidden)
    told.warns("/dev/fuse", "only who mounts needs it")
    assert told.code == 0


# -- propagation


def in_namespace(script: str) -> tuple[str, ...]:
    """Run in a mount namespace of its own that nothing leaves, when `script` has prepared it."""
    return ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}; exec "$@"', "sh")


def test_what_is_mounted_here_is_seen_by_nobody_else(store: Path, point: Path) -> None:
    ask(store, point, wrapper=in_namespace(":")).warns("propagation", "is private", "Bidirectional")


def test_what_is_mounted_here_is_passed_on(store: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "tags").mkdir(parents=True)
    script = f"mount --bind {shared} {shared}; mount --make-shared {shared}"
    ask(store, shared / "tags", wrapper=in_namespace(script)).praises("propagation", f"{shared} is shared")
    slave = f"{script}; mount --bind {shared} {store.parent}/other; mount --make-slave {store.parent}/other"
    (tmp_path / "other").mkdir()
    ask(store, tmp_path / "other" / "tags", wrapper=in_namespace(slave)).warns("propagation", "is a slave")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are passed on."""
    path = tmp_path / "shared"
    path.mkdir()
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "--make-shared", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_where_a_mount_comes_from(store: Path, shared: Path, daemons: MakeDaemon) -> None:
    mount = daemons("--read-only", point=shared / "tags")
    wrapper = ("unshare", "--mount", "--propagation", "slave")
    ask(mount.point, wrapper=wrapper).praises("propagation", "received from outside", "so will be the next one")
    # As a pod that mounts the mount point itself: bound to this daemon's mount for ever.
    script = f"mount -t tmpfs none /mnt; mkdir /mnt/tags; mount --bind {mount.point} /mnt/tags"
    told = ask("/mnt/tags", wrapper=(*wrapper, "sh", "-ec", f'{script}; exec "$@"', "sh"))
    told.warns("propagation", "stays dead", "HostToContainer")


# -- the cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedCluster]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    with ServedCluster(directory, trustme.CA()) as served:
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig()))
        yield served


def test_the_rights_that_a_sweep_needs(cluster: ServedCluster) -> None:
    cluster.do(cluster.fake.create, keys_of("apps", 3))
    ask("--inventory", "kubernetes").praises("cluster", "may list and watch all imagerepositories")
    ask("--inventory", "kubernetes", "--watch-namespace", "apps").praises("cluster", "of namespace apps")
    cluster.do(cluster.fake.withdraw_rights)
    ask("--inventory", "kubernetes").fails("cluster", "403", "ClusterRole", "deploy/rbac/cluster.yaml")
    ask("--inventory", "kubernetes", "--watch-namespace", "apps").fails("cluster", "a Role", "rbac/namespace.yaml")


def test_a_cluster_without_image_repositories(cluster: ServedCluster) -> None:
    cluster.do(cluster.fake.delete_definition)
    ask("--inventory", "kubernetes").fails("cluster", "404", "image-reflector-controller")


def test_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ask("--inventory", "kubernetes").fails("cluster", "KUBECONFIG")


# -- manifests


def test_manifests_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(APP_WEB)
    settle(tmp_path)
    ask("--inventory", f"manifests:{tmp_path}").praises("manifests", "declare 1 image repositories")


def test_manifests_that_hold_every_sweep(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(APP_WEB.replace("web", "{{ .name }}"))
    settle(tmp_path)
    ask("--inventory", f"manifests:{tmp_path}").fails("manifests", "web.yaml", "template", "--manifests-ignore")
    ask("--inventory", f"manifests:{tmp_path}/gone").fails("manifests", "gone", "No such file")


def test_manifests_that_declare_nothing(tmp_path: Path) -> None:
    settle(tmp_path)
    ask("--inventory", f"manifests:{tmp_path}").warns("manifests", "no ImageRepository", "nothing is deleted")


# -- how it is told


def test_for_a_script_each_remark_is_a_line(point: Path) -> None:
    command = [sys.executable, "-m", "tagfs", "doctor", "/nonexistent", str(point)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    assert done.returncode == 6
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {len(row) for row in rows} == {4}
    assert [row[:3] for row in rows if row[0] == "fail"] == [["fail", "store", "/nonexistent does not exist"]]
