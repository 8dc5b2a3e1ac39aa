"""A small machine: systemd as the first process of namespaces of its own, on an overlay of this machine's root.

Nothing of this machine's own services is started in it, and nothing that happens in it stays: files that it writes are
in memory, and with its first process all others end.  FUSE mounts in it are real.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import eventually

SYSTEMD = "/lib/systemd/systemd"

_MASKED = """
    systemd-udevd.service systemd-udev-trigger.service systemd-logind.service systemd-timesyncd.service
    systemd-networkd.service systemd-resolved.service systemd-modules-load.service systemd-sysctl.service
    systemd-random-seed.service systemd-remount-fs.service systemd-machine-id-commit.service systemd-firstboot.service
    systemd-update-utmp.service systemd-pstore.service systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service
    systemd-tmpfiles-clean.timer systemd-sysusers.service kmod-static-nodes.service
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount
    getty.target dbus.service dbus.socket e2scrub_all.timer
"""

_BOOT = r"""
set -eu
work=$1
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
cd "$work/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mknod -m 666 dev/fuse c 10 229  # as udev leaves it
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /dev/null dev/console
mount -t tmpfs -o mode=755 tmpfs run
rm -rf etc/systemd/system
mkdir -p etc/systemd/system
for unit in $MASKED; do ln -s /dev/null etc/systemd/system/$unit; done
: >etc/fstab
mkdir old
pivot_root . old
umount --lazy /old
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$SYSTEMD" --unit=multi-user.target --log-target=journal </dev/null
"""


def missing() -> str | None:
    """Why there can be no such machine here; None: there can."""
    if os.geteuid() != 0:
        return "only root can start a system"
    if not Path(SYSTEMD).exists() or shutil.which("nsenter") is None:
        return "systemd or nsenter is not installed"
    probe = ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "true"]
    return None if subprocess.run(probe, capture_output=True, check=False).returncode == 0 else "no namespaces here"


class Machine:
    """Runs as soon as it is made; `stop` it.  `work` is an empty directory."""

    def __init__(self, work: Path) -> None:
        self._log = (work.parent / "boot.log").open("wb")
        namespaces = ["--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--kill-child"]
        self._process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _BOOT, "sh", str(work)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MASKED": _MASKED, "SYSTEMD": SYSTEMD},
        )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        first = eventually(lambda: children.read_text().split(), "the first process is there")[0]
        self._first = int(first)
        try:
            eventually(lambda: self._state() in ("running", "degraded"), "the machine is up")
        except AssertionError:
            self.stop()
            raise AssertionError((work.parent / "boot.log").read_text()) from None

    def run(self, *command: object, check: bool = True, timeout: float = 60) -> str:
        """What a command says that runs in it."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--all", *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def show(self, unit: str, of: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", of, unit)

    def log(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit, check=False)

    def path(self, path: str) -> Path:
        """A path in it, as this process can use it."""
        return Path(f"/proc/{self._first}/root{path}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _state(self) -> str:
        assert self._process.poll() is None, "it has ended"
        root = Path(f"/proc/{self._first}/root")
        if not (root / "run/systemd/private").exists():
            return "starting"
        return self.run("systemctl", "is-system-running", check=False)


def open_to_all(machine: Machine, path: str) -> None:
    """Let every user of the machine enter what is above a path, as where Python is."""
    for above in [*Path(path).parents][::-1]:
        inside = machine.path(str(above))
        if not inside.stat().st_mode & 0o001:
            inside.chmod(inside.stat().st_mode | 0o755)


def python() -> str:
    """The interpreter that the tests run on, without its virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
