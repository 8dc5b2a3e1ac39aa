"""systemd: the units are right, as hard as they can be, and do what they say under a real systemd."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import machine as machines
from tests.support.daemon import eventually
from tests.support.installed import PROJECT, installed
from tests.support.machine import Machine

UNITS = PROJECT / "systemd"

EXPOSURE = {"tagfs@.service": 3.9, "tagfs-sweep@.service": 1.5}
"""What `systemd-analyze security` makes of each (0 best, 10 worst; systemd 252); docs/security.md says the same."""

NAMESPACES = (
    "ProtectSystem ProtectHome ReadOnlyPaths ReadWritePaths InaccessiblePaths ExecPaths NoExecPaths "
    "TemporaryFileSystem PrivateTmp PrivateDevices PrivateMounts PrivateUsers PrivateIPC ProtectProc ProcSubset "
    "ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups RootDirectory RootImage "
    "BindPaths BindReadOnlyPaths MountAPIVFS MountImages ExtensionImages DynamicUser LogNamespace MountFlags"
)
"""What gives a service a mount namespace of its own."""

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings_of(unit: str) -> list[str]:
    return re.findall(r"^(\w+)=", (UNITS / unit).read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with a command that exists."""
    made = tmp_path_factory.mktemp("units")
    for unit in UNITS.glob("*@.*"):
        (made / unit.name).write_text(unit.read_text().replace("@BINDIR@/tagfs", shutil.which("true") or ""))
    shutil.copy(UNITS / "example.mount", made / "mnt-tags.mount")
    return made


@needs_analyze
def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    names = ["tagfs@x.service", "tagfs-sweep@x.service", "tagfs-sweep@x.timer", "mnt-tags.mount"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(units / name for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize("unit", EXPOSURE)
def test_the_exposure_of_a_unit_has_not_become_worse(units: Path, unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(units / unit)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= EXPOSURE[unit]
    assert f"`{unit}` | {EXPOSURE[unit]}" in (PROJECT / "docs/security.md").read_text()


def test_the_unit_that_mounts_has_no_mount_namespace_of_its_own() -> None:
    assert not set(settings_of("tagfs@.service")) & set(NAMESPACES.split())
    assert set(settings_of("tagfs-sweep@.service")) & set(NAMESPACES.split())


def test_the_reason_of_a_setting_stands_above_it() -> None:
    lines = (UNITS / "tagfs@.service").read_text().splitlines()
    service = lines[lines.index("[Service]") : lines.index("[Install]")]
    groups = "\n".join(service).split("\n#")
    assert len(groups) >= 15


# -- under a real systemd


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if (why := machines.missing()) is not None:
        pytest.skip(why)
    tree = installed()
    work = tmp_path_factory.mktemp("machine") / "work"
    work.mkdir()
    made = Machine(work)
    try:
        shutil.copytree(tree, made.path("/"), dirs_exist_ok=True)
        machines.open_to_all(made, machines.python())
        made.run("systemd-sysusers", "/usr/lib/sysusers.d/tagfs.conf")
        made.run("systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/tagfs.conf")
        made.run("systemctl", "daemon-reload")
        yield made
    finally:
        made.stop()


@pytest.fixture
def service(machine: Machine) -> Iterator[str]:
    """An instance that runs, and has a list."""
    machine.path("/etc/tagfs/web.env").write_text("TAGFS_LOG_LEVEL=info\n")
    unit = "tagfs@web.service"
    machine.run("systemctl", "start", unit)
    machine.run("sh", "-c", "mkdir -p /run/tagfs/web/imagerepository/team/app", check=False)
    yield unit
    machine.run("systemctl", "stop", unit)
    machine.run("systemctl", "reset-failed", unit, check=False)


def put(machine: Machine, tags: str) -> None:
    """As the user whose mount it is."""
    directory = "/run/tagfs/web/imagerepository/team/app"
    script = f"mkdir -p {directory} && printf '{tags}' >{directory}/tags.txt"
    machine.run("setpriv", "--reuid=tagfs", "--regid=tagfs", "--clear-groups", "sh", "-c", script)


def cat(machine: Machine, check: bool = True) -> str:
    return machine.run("cat", "/run/tagfs/web/imagerepository/team/app/tags.txt", check=check, timeout=20)


def status_of(machine: Machine, process: int) -> dict[str, str]:
    lines = machine.run("cat", f"/proc/{process}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def inner(machine: Machine, unit: str) -> tuple[int, int]:
    """(main process, server) as the machine numbers them."""
    main = int(machine.show(unit, "MainPID"))
    [server] = machine.run("cat", f"/proc/{main}/task/{main}/children").split()[:1]
    return main, int(server)


def await_restart(machine: Machine, unit: str, restarts: int) -> None:
    """Return when it has been restarted more than so many times, and is up."""
    eventually(lambda: int(machine.show(unit, "NRestarts")) > restarts, "it is restarted", patience=60)
    eventually(lambda: machine.show(unit, "ActiveState") == "active", "it is up again", patience=60)


@pytest.mark.mount
@pytest.mark.slow
def test_it_mounts_where_the_host_sees_it_and_serves_without_rights(machine: Machine, service: str) -> None:
    assert machine.show(service, "ActiveState") == "active"
    assert "/run/tagfs/web shows /var/lib/tagfs/web: read-write" in machine.show(service, "StatusText")
    put(machine, "v1\\nv2\\n")
    assert cat(machine) == "v1\nv2"
    main, server = inner(machine, service)
    user = machine.run("id", "-u", "tagfs")
    for process in (main, server):
        told = status_of(machine, process)
        assert told["Uid"].split() == [user] * 4
        assert told["NoNewPrivs"] == "1"
        assert told["Seccomp"] == "2"
    sys_admin = 1 << 21
    assert int(status_of(machine, main)["CapEff"], 16) == sys_admin
    assert int(status_of(machine, server)["CapEff"], 16) == 0
    assert machine.run("stat", "-c", "%U %a", "/var/lib/tagfs/web") == "tagfs 700"


@pytest.mark.mount
@pytest.mark.slow
def test_it_is_restarted_over_what_a_killed_one_left(machine: Machine, service: str) -> None:
    put(machine, "v1\\n")
    for which in (0, 1):
        restarts = int(machine.show(service, "NRestarts"))
        machine.run("kill", "-KILL", inner(machine, service)[which])
        await_restart(machine, service, restarts)
        assert cat(machine) == "v1"


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_watchdog_ends_a_server_that_hangs(machine: Machine, service: str) -> None:
    put(machine, "v1\\n")
    drop_in = machine.path("/etc/systemd/system/tagfs@web.service.d")
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "quick.conf").write_text("[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", service)
    restarts = int(machine.show(service, "NRestarts"))
    _, server = inner(machine, service)
    machine.run("kill", "-STOP", server)
    await_restart(machine, service, restarts)
    assert cat(machine) == "v1"
    assert "Watchdog timeout" in machine.log(service)


@pytest.mark.mount
@pytest.mark.slow
def test_a_reload_looks_afresh_and_keeps_the_mount(machine: Machine, service: str) -> None:
    put(machine, "v1\\n")
    before = inner(machine, service)
    machine.run("systemctl", "reload", service)
    eventually(lambda: "afresh" in machine.log(service), "it says so")
    eventually(lambda: machine.show(service, "ActiveState") == "active", "it is active again")
    assert inner(machine, service) == before
    assert cat(machine) == "v1"


@pytest.mark.mount
@pytest.mark.slow
def test_a_stop_is_clean_and_what_is_left_is_closed_to_others(machine: Machine, service: str) -> None:
    put(machine, "v1\\n")
    machine.run("systemctl", "stop", service)
    assert machine.show(service, "Result") == "success"
    assert machine.run("findmnt", "--type", "fuse.tagfs", check=False) == ""
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert machine.run(*as_nobody, "ls", "/run/tagfs/web", check=False) == ""
    assert machine.run("stat", "-c", "%U %a", "/run/tagfs/web") == "tagfs 700"


@pytest.mark.mount
@pytest.mark.slow
def test_an_instance_without_settings_does_not_start(machine: Machine) -> None:
    machine.run("systemctl", "start", "tagfs@typo.service", check=False)
    assert machine.show("tagfs@typo.service", "ActiveState") in ("failed", "activating", "inactive")
    machine.run("systemctl", "stop", "tagfs@typo.service", check=False)
    assert machine.run("findmnt", "--type", "fuse.tagfs", check=False) == ""


@pytest.mark.mount
@pytest.mark.slow
def test_a_sweep_runs_beside_a_read_only_mount(machine: Machine, service: str) -> None:
    put(machine, "v1\\n")
    machine.path("/etc/tagfs/web.env").write_text("TAGFS_READ_ONLY=1\n")
    machine.run("systemctl", "restart", service)
    machine.run("mkdir", "-p", "/srv/manifests")
    manifest = (
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepository\nmetadata: {name: other, namespace: team}\n"
    )
    machine.path("/srv/manifests/one.yaml").write_text(manifest)
    machine.path("/etc/tagfs/web.sweep.env").write_text("TAGFS_INVENTORY=manifests:/srv/manifests\n")
    machine.run("systemctl", "start", "tagfs-sweep@web.service")
    assert machine.show("tagfs-sweep@web.service", "Result") == "success"
    assert machine.run("find", "/var/lib/tagfs/web", "-name", "tags.txt*") == ""
    assert machine.show(service, "ActiveState") == "active"


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.parametrize("options", ["rw,allow_other", "rw,allow_other,drop_privileges,setuid=tagfs"])
def test_a_line_of_fstab_mounts(machine: Machine, options: str) -> None:
    machine.run("sh", "-c", "mkdir -p /mnt/tags /var/lib/tagfs/tab && chown -R tagfs: /var/lib/tagfs/tab")
    machine.path("/etc/fstab").write_text(f"/var/lib/tagfs/tab /mnt/tags fuse.tagfs {options},nofail 0 0\n")
    machine.run("mount", "/mnt/tags")
    try:
        assert machine.run("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "/mnt/tags").split() == [
            "fuse.tagfs",
            "/var/lib/tagfs/tab",
        ]
        machine.run("ls", "/mnt/tags/imagerepository")
    finally:
        machine.run("umount", "/mnt/tags")
    eventually(lambda: machine.run("pgrep", "-f", "/var/lib/tagfs/tab", check=False) == "", "its processes end")


@pytest.mark.mount
@pytest.mark.slow
def test_the_helper_of_libfuse_mounts_and_has_tagfs_serve_the_device(machine: Machine) -> None:
    if machine.run("which", "mount.fuse3", check=False) == "":
        pytest.skip("needs mount.fuse3")
    machine.run("sh", "-c", "mkdir -p /mnt/tags /var/lib/tagfs/libfuse")
    options = "ro,allow_other,drop_privileges,nofail"
    machine.run("tagfs", "mount", "--background", "/var/lib/tagfs/libfuse", "/mnt/tags")
    machine.run("tagfs", "unmount", "/mnt/tags")
    machine.run("mount.fuse3", "/var/lib/tagfs/libfuse", "/mnt/tags", "-t", "fuse.tagfs", "-o", options)
    try:
        machine.run("ls", "/mnt/tags/imagerepository")
        [server] = machine.run("pgrep", "-f", "/dev/fd/").split()
        assert int(status_of(machine, int(server))["CapEff"], 16) == 0
    finally:
        machine.run("umount", "/mnt/tags")
    eventually(lambda: machine.run("pgrep", "-f", "/dev/fd/", check=False) == "", "the server ends")


@pytest.mark.mount
@pytest.mark.slow
def test_the_example_of_a_mount_unit_mounts(machine: Machine) -> None:
    machine.run("sh", "-c", "mkdir -p /var/lib/tagfs/example && chown nobody: /var/lib/tagfs/example")
    machine.run("cp", "/usr/share/doc/tagfs/examples/example.mount", "/etc/systemd/system/mnt-tags.mount")
    machine.path("/etc/fstab").write_text("")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "mnt-tags.mount")
    try:
        assert machine.run("findmnt", "--noheadings", "--output", "FSTYPE", "/mnt/tags") == "fuse.tagfs"
    finally:
        machine.run("systemctl", "stop", "mnt-tags.mount")
    assert machine.run("findmnt", "/mnt/tags", check=False) == ""
