"""Command line: exit codes, help, output in a pipe, on a terminal and as JSON, and never a traceback."""

import errno
import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tagfs import __version__, cli, errors, mountpoint
from tagfs.disk import Disk
from tagfs.endings import ENDINGS, exit_code
from tagfs.errors import TagfsError
from tagfs.holder import is_held, take
from tagfs.names import BASE, LIST, VERSION_SENTINEL
from tagfs.page import human, printable
from tagfs.settings import SETTINGS
from tests.conftest import MakeDaemon
from tests.support.daemon import eventually
from tests.support.stores import KEY, LARGE, NEIGHBOUR, SMALL, open_store

COMMANDS = ("mount", "unmount", "status", "check", "convert", "sweep", "watch", "doctor", "help")
PATIENCE = 60

Done = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAGFS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", **variables}


def tagfs(
    *arguments: object,
    cwd: Path | None = None,
    stdout: int = subprocess.PIPE,
    variables: dict[str, str] | None = None,
) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "tagfs", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables or {}),
        cwd=cwd,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr + (done.stdout or ""), done.stderr
    return done


def refused(done: Done, code: int, told: str) -> None:
    """One line on stderr, that starts with the program's name."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"tagfs: [^\n]+\n", done.stderr), done.stderr
    assert re.search(told, done.stderr), done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    made = open_store(Disk(), str(path))
    made.replace(KEY, LARGE)
    made.replace(NEIGHBOUR, SMALL)
    made.close()
    return path


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A mount point at which nothing is left afterwards."""
    path = tmp_path / "point"
    path.mkdir()
    yield path
    while mountpoint.mounted_at(str(path)) is not None:
        mountpoint.unmount(str(path), lazy=True)


def subclasses(kind: type[BaseException]) -> list[type[BaseException]]:
    return [kind, *(below for direct in kind.__subclasses__() for below in subclasses(direct))]


# -- the table of exit codes


def test_every_error_has_exactly_one_exit_code() -> None:
    listed = [kind for ending in ENDINGS for kind in ending.errors]
    assert len(set(listed)) == len(listed)
    assert len({ending.code for ending in ENDINGS}) == len(ENDINGS)
    for kind in subclasses(TagfsError)[1:]:
        closest = next(above for above in kind.__mro__ if above in listed)
        assert closest is not TagfsError, f"{kind.__name__} has no place in ENDINGS, nor has what it is a kind of"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(), 1),
        (errors.SettingRefused(), 2),
        (errors.StoreRefused(), 3),
        (errors.StoreHeld("/s", "pid 1"), 4),
        (errors.MountRefused(), 5),
        (errors.ListCorrupt("a", "b"), 6),
        (errors.StoreWaiting(), 7),
        (OSError(errno.EIO, ""), 8),
        (PermissionError(), 8),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_an_error_ends_in_the_code_of_its_closest_class(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


# -- help and usage


@pytest.mark.parametrize("arguments", [["--help"], ["help"], *([[name, "--help"] for name in COMMANDS])], ids=" ".join)
def test_help_has_the_exit_codes_and_fits_a_terminal(arguments: list[str]) -> None:
    done = tagfs(*arguments, variables={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    for ending in ENDINGS:
        assert f"\n  {ending.code:<4} {ending.meaning}" in done.stdout
    if arguments != ["help", "--help"]:
        assert "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_of_a_command_is_its_help() -> None:
    for name in COMMANDS:
        assert tagfs("help", name).stdout == tagfs(name, "--help").stdout


def test_help_of_mount_has_every_flag_and_variable_and_fluxs_default() -> None:
    text = tagfs("help", "mount").stdout
    for setting in SETTINGS:
        assert f"--{setting.flag}" in text
        assert setting.variable in text
    assert re.search(r"default 4; Flux's\s+flag of this name has 64", text)


def test_version() -> None:
    assert tagfs("--version").stdout == f"tagfs {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from tagfs.cli import main; assert main(['help', 'mount']) == 0\n"
        "print({'trio', 'pyfuse3', 'rich', 'zstandard', 'tagfs.mount', 'tagfs.check'} & set(sys.modules), 'loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.endswith("set() loaded\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a command; see `tagfs help`"),
        (["dance"], "'dance'.*see `tagfs help`"),
        (["mount", "s"], "MOUNTPOINT; see `tagfs help mount`"),
        (["mount", "s", "m", "--sunny"], "--sunny"),
        (["mount", "s", "m", "--read"], "--read"),
        (["mount", "s", "m", "--codec", "lz4"], "--codec: 'lz4' cannot be used; give one of"),
        (["mount", "s", "m", "--storage-compression-threshold", "0"], "at least 1"),
        (["mount", "s", "m", "--wait", "-1"], "--wait"),
        (["mount", "s", "m", "-o", "ro", "--codec", "gzip"], "no effect on a read-only mount"),
        (["mount", "s", "m", "-o", "sunny"], "-o sunny"),
        (["/s", "m", "-o", "sunny"], "-o sunny"),
        (["status"], "PATH; see `tagfs help status`"),
        (["convert", "s"], "--codec"),
        (["convert", "s", "--codec", "auto"], "auto"),
        (["convert", "s", "--codec", "gzip", "--storage-compression-threshold", "-3"], "threshold: '-3'"),
        (["check", "s", "--max-list-size", "big"], "MiB"),
        (["status", "s", "--log-level", "loud"], "--log-level: 'loud'"),
        (["help", "dance"], "dance"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_is_complained_about_in_one_line(arguments: list[str], told: str) -> None:
    refused(tagfs(*arguments), 2, told)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("TAGFS_READ_ONLY", "yes"), ("TAGFS_UID", "me"), ("TAGFS_NAMESPACE", ""), ("TAGFS_WAIT", "x")],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, text: str) -> None:
    refused(tagfs("mount", "s", "m", variables={variable: text}), 2, f"^tagfs: {variable}: ")


# -- refusals of each kind


def test_what_is_no_store_is_refused(tmp_path: Path, point: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    refused(tagfs("mount", foreign, point), 3, "thesis.tex.*--wipe-foreign")
    refused(tagfs("convert", foreign, "--codec", "zstd"), 3, "thesis.tex")
    refused(tagfs("status", foreign), 3, "thesis.tex")
    refused(tagfs("status", "/proc"), 3, "is no tag store")
    for command in ("status", "check"):
        refused(tagfs(command, tmp_path / "missing"), 3, "does not exist: make it first")
        refused(tagfs(command, foreign / "thesis.tex"), 3, "is no directory")


def test_a_store_that_is_held_is_refused_by_whom(store: Path, point: Path) -> None:
    held = take(Disk(), str(store))
    try:
        for arguments in (["mount", store, point], ["check", "--repair", store], ["convert", store, "--codec", "gzip"]):
            refused(tagfs(*arguments), 4, rf"held by another writer: pid {os.getpid()} \(.*tagfs unmount")
        assert tagfs("check", store).returncode == 0
    finally:
        os.close(held)


def test_what_cannot_be_mounted_or_unmounted_is_refused(store: Path, tmp_path: Path) -> None:
    refused(tagfs("mount", store, tmp_path), 5, "inside")
    refused(tagfs("mount", store, tmp_path / "missing"), 5, "mkdir -p")
    refused(tagfs("unmount", tmp_path), 5, "is not mounted")
    refused(tagfs("unmount", "/proc"), 5, "no tagfs")


def test_a_store_that_is_not_ready_in_time_is_refused(tmp_path: Path, point: Path) -> None:
    refused(tagfs("mount", "--read-only", "--wait", "0", tmp_path / "none", point, "--log-level=error"), 7, "not there")
    (tmp_path / "empty").mkdir()
    refused(tagfs("convert", tmp_path / "empty", "--codec", "gzip"), 7, "not ready: empty")
    refused(tagfs("status", tmp_path / "empty"), 7, "not ready: empty")


def test_an_output_that_cannot_be_written_is_an_error(store: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = tagfs("status", store, stdout=full.fileno())
    assert done.returncode == 8
    assert done.stderr == "tagfs: the disk or the output failed: No space left on device\n"


def test_no_output_at_all_is_no_error(store: Path) -> None:
    command = f"exec {sys.executable} -m tagfs status {store} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environment(), timeout=PATIENCE, check=False).returncode == 0


def run_with(serve: str, *arguments: object) -> Done:
    """Run with another `serve`: what it does is not the command line's business."""
    code = f"import sys, types\nfrom tagfs.cli import main\n{serve}\n"
    code += "sys.modules['tagfs.mount'] = types.SimpleNamespace(load=id, serve=serve)\nsys.exit(main())"
    command = [sys.executable, "-c", code, "mount", "s", "m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)


def test_what_is_unexpected_is_one_line_and_has_its_traceback_at_debug_only() -> None:
    serve = "def serve(settings, announce): raise ZeroDivisionError('oh')"
    for flags in ((), ("--background",)):
        refused(run_with(serve, *flags), 1, "unexpected ZeroDivisionError: oh; please report it")
    done = run_with(serve, "--log-level", "debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("debug prints\n")


def test_missing_fuse_libraries_say_what_to_install() -> None:
    code = "import sys; sys.modules['pyfuse3'] = None; from tagfs.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "mount", "--no-fast-path", "s", "m"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    refused(done, 5, "FUSE cannot be used.*install")


def test_ctrl_c_is_quiet() -> None:
    serve = "def serve(settings, announce): raise KeyboardInterrupt"
    for flags in ((), ("--background",)):
        done = run_with(serve, *flags)
        assert done.returncode == 130
        assert "Traceback" not in done.stderr


def test_every_line_of_a_mount_is_printed() -> None:
    done = run_with("def serve(settings, announce): announce('waits'); announce('ready')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "waits\nready\n", "")


# -- status, check and convert


def pairs(done: Done) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line and "\t" not in line)


def test_status_in_a_pipe_is_lines_and_bytes(store: Path) -> None:
    done = tagfs("status", store)
    assert (done.returncode, done.stderr) == (0, "")
    found = pairs(done)
    assert found["store"] == str(store)
    assert found["format"] == "3"
    assert found["repositories"] == "2"
    assert found["plain"] == str(len(LARGE) + len(SMALL))
    assert f"largest\t{KEY}\t200\t{len(LARGE)}" in done.stdout.splitlines()
    assert "\x1b" not in done.stdout


def test_status_as_json_has_the_same(store: Path) -> None:
    found = json.loads(tagfs("status", "--json", store).stdout)
    assert found["path"] == str(store)
    assert found["plain_bytes"] == len(LARGE) + len(SMALL)
    assert found["largest"][0] == {"repository": str(KEY), "tags": 200, "plain_bytes": len(LARGE)}
    assert found["problems"] == []


def test_relative_paths_are_those_of_the_caller(store: Path) -> None:
    assert pairs(tagfs("status", "store", cwd=store.parent))["store"] == str(store)


def test_problems_end_in_6_until_they_are_mended(store: Path) -> None:
    corrupt = store / KEY.directory / "tags.txt.gz"
    corrupt.write_bytes(gzip.compress(LARGE)[:-9])
    os.utime(corrupt, (4_000_000_000, 4_000_000_000))
    assert tagfs("status", store).returncode == 6
    found = tagfs("check", "--json", store)
    assert found.returncode == 6
    finding = next(one for one in json.loads(found.stdout)["findings"] if one["kind"] == "corrupt")
    assert (finding["severity"], finding["path"]) == ("problem", f"{KEY.directory}/tags.txt.gz")
    assert finding["mended"] is None
    repaired = tagfs("check", "--repair", store)
    assert repaired.returncode == 0
    assert re.search(r"corrupt\tproblem\t.*tags\.txt\.gz\t.*\tmoved to \.tagfs-quarantine/", repaired.stdout)
    assert pairs(repaired)["mended"] == "1"
    again = tagfs("check", "--repair", store)
    assert (again.returncode, pairs(again)["problems"]) == (0, "0")
    assert tagfs("status", store).returncode == 0


def test_convert_says_what_it_did(store: Path) -> None:
    done = tagfs("convert", store, "--codec", "gzip", "--storage-compression-threshold", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert pairs(done) == {
        "store": str(store),
        "format": "2",
        "codec": "gzip",
        "converted": "1",
        "unchanged": "1",
        "unreadable": "0",
    }
    back = tagfs("convert", store, "--codec", "zstd", variables={"TAGFS_STORAGE_COMPRESSION_THRESHOLD": "2"})
    assert (pairs(back)["format"], pairs(back)["unchanged"]) == ("3", "1")


def test_convert_ends_in_6_where_a_list_is_left(store: Path) -> None:
    (store / KEY.directory / "tags.txt.zst").write_bytes(b"junk")
    done = tagfs("convert", store, "--codec", "gzip")
    assert done.returncode == 6
    assert "stays at format 3" in done.stderr
    assert f"unreadable\t{KEY.directory}/tags.txt.zst\tnot zstd, or truncated" in done.stdout
    assert (store / VERSION_SENTINEL).read_text() == "3\n"


def test_a_name_cannot_break_a_line_nor_colour_it(store: Path) -> None:
    (store / "bad\nname\x1b[31m").touch()
    done = tagfs("check", store)
    assert "foreign\tnote\tbad\\nname\\x1b[31m\ta file that is no part" in done.stdout
    (store / os.fsdecode(b"\xff\xfe")).touch()
    assert "\\udcff\\udcfe" in tagfs("check", store).stdout
    assert json.loads(tagfs("check", "--json", store).stdout)["notes"] == 2


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["check"], ["check", "--json"]], ids=" ".join)
def test_a_closed_pipe_is_quiet(store: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = tagfs(*arguments, store, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_pipe_is_quiet_for_help_too() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = tagfs("--help", stdout=writing)
    os.close(writing)
    assert done.stderr == ""


def test_ctrl_c_while_output_waits_is_quiet(store: Path) -> None:
    for number in range(800):
        (store / f"a-foreign-file-with-a-name-that-makes-the-output-long-{number}").touch()
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "tagfs", "check", "--json", str(store)]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        os.close(writing)
        eventually(lambda: "pipe_write" in Path(f"/proc/{process.pid}/wchan").read_text(), "the pipe is full")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 130
    os.close(reading)


# -- on a terminal


def on_a_terminal(*arguments: object, without_rich: bool = False) -> tuple[int, str]:
    code = "import sys\n" + ("sys.modules['rich'] = None\n" if without_rich else "")
    code += "from tagfs.cli import main\nsys.exit(main())"
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=terminal,
        stderr=terminal,
        env={**environment(), "TERM": "xterm"},
    )
    os.close(terminal)
    seen = b""
    with open(controller, "rb", buffering=0) as reader:
        while True:
            try:
                part = reader.read(4096)
            except OSError:  # The other end is closed: EIO.
                break
            if not part:
                break
            seen += part
    return process.wait(PATIENCE), seen.decode()


@pytest.mark.parametrize("without_rich", [False, True])
def test_status_on_a_terminal_is_a_table_in_units(store: Path, without_rich: bool) -> None:
    code, text = on_a_terminal("status", store, without_rich=without_rich)
    assert code == 0
    assert re.search(r"plain: +1\.\d KiB", text)
    assert "Largest lists" in text
    assert str(KEY) in text
    assert ("─" in text) is not without_rich


@pytest.mark.parametrize("without_rich", [False, True])
def test_check_on_a_terminal_shows_the_first_of_many_and_what_to_do(store: Path, without_rich: bool) -> None:
    for number in range(30):
        (store / KEY.directory / f"[bold]{number:02}").touch()
    (store / NEIGHBOUR.directory / "tags.txt").chmod(0o666)
    code, text = on_a_terminal("check", store, without_rich=without_rich)
    assert code == 6
    assert text.count("[bold]") == 20
    assert "and 10 more of foreign" in text
    assert f"next: `tagfs check --repair {store}`" in text


def test_sizes_for_a_person() -> None:
    assert [human(size) for size in (0, 1023, 1024, 1536, 1 << 20, 5 << 30, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]
    assert printable("ä-1\t\x00") == "ä-1\\t\\x00"


# -- real mounts


@pytest.mark.mount
def test_a_mount_in_the_background_returns_when_it_answers(store: Path, point: Path) -> None:
    began = time.monotonic()
    done = tagfs("mount", "--background", store, point)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < PATIENCE / 2
    assert re.fullmatch(rf"{point} shows {store}: .*\n", done.stdout)
    assert (point / KEY.path).read_bytes() == LARGE
    assert pairs(tagfs("status", point))["shows"] == str(store)
    refused(tagfs("mount", store, point), 5, "tagfs unmount")
    assert tagfs("unmount", point).returncode == 0
    assert list(point.iterdir()) == []


@pytest.mark.mount
def test_unmounting_returns_when_what_was_closed_is_committed(store: Path, point: Path) -> None:
    assert tagfs("mount", "--background", store, point).returncode == 0
    names = [f"app{number}" for number in range(200)]
    for name in names:
        (point / BASE / "apps" / name).mkdir()
    # One process, which has all that it needs before it writes: starting another one gives the mount time.
    code = f"""
from tagfs import holder, mountpoint
from tagfs.cli import main
from tagfs.disk import Disk
for name in {names}:
    with open(f"{point}/{BASE}/apps/{{name}}/{LIST}", "w") as file:
        file.write("v1\\n")
assert main(["unmount", "{point}"]) == 0
assert not holder.is_held(Disk(), "{store}")
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=PATIENCE)
    assert {(store / BASE / "apps" / name / LIST).read_text() for name in names} == {"v1\n"}


@pytest.mark.mount
def test_unmounting_one_that_stood_by_waits_for_nobody(store: Path, point: Path, daemons: MakeDaemon) -> None:
    holding = daemons(store=store)
    assert tagfs("mount", "--background", "--wait", "60", store, point).returncode == 0
    done = tagfs("unmount", point)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_held(Disk(), str(store))
    assert holding.stop() == 0


@pytest.mark.mount
def test_a_mount_in_the_background_keeps_nothing_of_its_starter(store: Path, point: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tagfs", "mount", "--background", "--log-level=debug", str(store), str(point)]
        subprocess.run(
            command, stdout=subprocess.PIPE, stderr=file, env=environment(), check=True, close_fds=False, cwd=tmp_path
        )
    os.close(writing)
    assert os.read(reading, 1) == b"", "the pipe has no writer left"
    os.close(reading)
    assert tagfs("unmount", point).returncode == 0
    eventually(lambda: f"{point}: unmounted" in log.read_text(), "the log goes on in a file")


@pytest.mark.mount
def test_a_mount_in_the_background_that_fails_says_why(store: Path, point: Path, tmp_path: Path) -> None:
    refused(tagfs("mount", "--background", store, tmp_path / "missing"), 5, "does not exist")
    held = take(Disk(), str(store))
    refused(tagfs("mount", "--background", store, point), 4, f"pid {os.getpid()} ")
    os.close(held)


@pytest.mark.mount
def test_a_mount_in_the_background_that_waits_returns_when_it_answers(tmp_path: Path, point: Path) -> None:
    done = tagfs("mount", "--background", "--read-only", tmp_path / "later", point)
    assert done.returncode == 0
    assert "waits for its store" in done.stdout
    refused(tagfs("status", point), 7, "waits for its store")
    assert tagfs("unmount", point).returncode == 0


@pytest.mark.mount
def test_fstab_s_form_mounts_in_the_background(store: Path, point: Path) -> None:
    done = tagfs(store, point, "-o", "ro,nosuid,nodev,noexec,nofail,x-systemd.automount,namespace=apps")
    assert done.returncode == 0, done.stderr
    assert "read-only" in done.stdout
    with pytest.raises(OSError):
        (point / "imagerepository" / "new").mkdir()
    assert tagfs("unmount", point).returncode == 0


@pytest.mark.mount
def test_a_dead_mount_is_told_and_unmounted(store: Path, daemons: MakeDaemon) -> None:
    daemon = daemons(store=store)
    daemon.kill()
    refused(tagfs("status", daemon.point), 5, "dead.*tagfs unmount")
    assert tagfs("unmount", daemon.point).returncode == 0
    assert mountpoint.mounted_at(str(daemon.point)) is None


@pytest.mark.mount
@pytest.mark.parametrize("flags", [[], ["--read-only"]], ids=["read-write", "read-only"])
def test_commands_tell_that_a_mount_hangs_instead_of_hanging(
    store: Path, daemons: MakeDaemon, tmp_path: Path, flags: list[str]
) -> None:
    daemon = daemons(*flags, store=store)
    there = mountpoint.mounted_at(str(daemon.point))
    assert there is not None
    link = tmp_path / "link"
    link.symlink_to(daemon.point.name)
    commands: list[tuple[object, ...]] = [
        ("status", daemon.point),
        ("status", link / "imagerepository" / "apps"),
        ("watch", daemon.point),
        ("mount", "--read-only", store, daemon.point),
    ]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            diagnosed = pool.submit(tagfs, "doctor", link)
            done = list(pool.map(lambda command: tagfs(*command), commands))
            remarks = diagnosed.result()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    told = rf"{daemon.point} does not answer .*pid {daemon.pid};.*fusermount3 -u -z {daemon.point}.*"
    told += f"/sys/fs/fuse/connections/{there.device[1]}/abort"
    for one in done:
        refused(one, 5, told)
    assert remarks.returncode == 6
    assert re.search(f"does not answer .*pid {daemon.pid}", remarks.stdout)
    assert tagfs("status", daemon.point).returncode == 0


@pytest.mark.mount
def test_a_busy_mount_is_unmounted_lazily_only(store: Path, daemons: MakeDaemon) -> None:
    daemon = daemons("--read-only", store=store)
    with daemon.list_path("podinfo", "apps").open("rb") as opened:
        refused(tagfs("unmount", daemon.point), 5, "busy.*--lazy")
        assert tagfs("unmount", "--lazy", daemon.point).returncode == 0
        assert opened.read() == LARGE
    assert daemon.wait() == 0


@pytest.mark.parametrize("within", [BASE, f"{BASE}/apps", f"{BASE}/apps/podinfo", f"{BASE}/new", f"{BASE}/new/new"])
def test_what_is_in_a_store_is_none(store: Path, point: Path, tmp_path: Path, within: str) -> None:
    before = sorted(store.rglob("*"))
    (tmp_path / "link").symlink_to(store)
    for arguments in (
        ["mount", store / within, point],
        ["mount", "--wipe-foreign", store / within, point],
        ["mount", "--read-only", tmp_path / "link" / within, point],
        ["check", store / within],
        ["status", store / within],
        ["import", store / within, tmp_path],
    ):
        refused(tagfs(*arguments), 3, f"is in a store; name that: {store}$")
    assert sorted(store.rglob("*")) == before


@pytest.mark.mount
def test_what_a_mount_shows_is_no_store(store: Path, point: Path, tmp_path: Path, daemons: MakeDaemon) -> None:
    daemon = daemons(store=store)
    shown = daemon.point
    for arguments in (
        ["mount", shown, point],
        ["mount", "--read-only", shown / "imagerepository", point],
        ["check", shown],
        ["check", "--repair", shown],
        ["convert", shown, "--codec", "gzip"],
        ["sweep", shown, "--inventory", f"manifests:{tmp_path}"],
    ):
        refused(tagfs(*arguments), 3, f"is in a mount; name its store: {store}$")
    (tmp_path / "source" / "team").mkdir(parents=True)
    (tmp_path / "source" / "team" / "app.txt").write_text("v1\n")
    for path in (shown, shown / "new"):
        refused(tagfs("import", path, tmp_path / "source"), 3, f"is in a mount; name its store: {store}$")
    assert daemon.stop() == 0


def test_main_returns_what_the_process_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert cli.main(["mount"]) == 2
    assert "Traceback" not in capsys.readouterr().err
