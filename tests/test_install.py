"""Installing: what `make install` and `make dist` make works by itself, with manual pages and completions."""

import gzip
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tagfs import __version__, mountpoint
from tests.support.daemon import PATIENCE, eventually
from tests.support.installed import PROJECT, installed, require_environment

COMMANDS = ("mount", "unmount", "status", "check", "convert", "sweep")

pytestmark = pytest.mark.slow

Done = subprocess.CompletedProcess[str]


def run(*command: object, **variables: str) -> Done:
    """Run without anything of this checkout: what is installed has to do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAGFS_", "PYTHON"))}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**kept, **variables},
        timeout=300,
    )


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manual pages and completions."""
    path = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, PROJECT / "scripts/reference", path], check=True)
    return path


# -- make install


def command_of(tree: Path, tmp_path: Path) -> Path:
    """The installed command, as it is where it will be: its library is below the directory of the package now."""
    text = (tree / "usr/bin/tagfs").read_text()
    moved = tmp_path / "tagfs"
    moved.write_text(text.replace("'/usr/lib/tagfs'", repr(str(tree / "usr/lib/tagfs"))))
    moved.chmod(0o755)
    return moved


def test_what_is_installed_runs_without_the_checkout(tmp_path: Path) -> None:
    command = command_of(installed(), tmp_path)
    assert run(command, "--version").stdout == f"tagfs {__version__}\n"
    done = run(command, "status", "--json", tmp_path / "none")
    assert (done.returncode, "does not exist" in done.stderr) == (3, True), done.stderr
    # An environment of the caller's has no part in it.
    assert run(command, "--version", PYTHONPATH="/nowhere", PYTHONHOME="/nowhere").returncode == 0


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts by mount(8)'s helper")
def test_the_helper_of_mount_mounts(tmp_path: Path) -> None:
    command = command_of(installed(), tmp_path)
    helper = tmp_path / "mount.fuse.tagfs"
    helper.write_text((installed() / "usr/sbin/mount.fuse.tagfs").read_text().replace("/usr/bin/tagfs", str(command)))
    (tmp_path / "point").mkdir()
    words = [tmp_path / "store", tmp_path / "point", "-v", "-o", "rw,nofail,noatime", "-t", "fuse.tagfs"]
    done = run("sh", helper, *words)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "point/imagerepository").is_dir()
    finally:
        mountpoint.unmount(str(tmp_path / "point"))
    assert run("sh", helper, *words, "-f").returncode == 0  # mount --fake
    assert mountpoint.mounted_at(str(tmp_path / "point")) is None


def test_everything_is_where_it_belongs_and_names_no_directory_of_a_package() -> None:
    tree = installed()
    for path in (
        "usr/bin/tagfs",
        "usr/sbin/mount.fuse.tagfs",
        "usr/lib/systemd/system/tagfs@.service",
        "usr/lib/systemd/system/tagfs-sweep@.service",
        "usr/lib/systemd/system/tagfs-sweep@.timer",
        "usr/lib/sysusers.d/tagfs.conf",
        "usr/lib/tmpfiles.d/tagfs.conf",
        "usr/share/man/man1/tagfs-mount.1.gz",
        "usr/share/bash-completion/completions/tagfs",
        "usr/share/zsh/site-functions/_tagfs",
        "usr/share/fish/vendor_completions.d/tagfs.fish",
        "usr/share/doc/tagfs/examples/example.fstab",
    ):
        assert (tree / path).is_file(), path
    for file in [*tree.glob("usr/*bin/*"), *tree.glob("usr/lib/systemd/system/*")]:
        assert str(tree) not in file.read_text() and "@BINDIR@" not in file.read_text(), file
    strange = [file for file in tree.rglob("*") if not file.is_symlink() and file.stat().st_mode & 0o022]
    assert not strange, f"others may write {strange}"


# -- make dist


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_environment()
    path = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", path], cwd=PROJECT, check=True, capture_output=True
    )
    return path


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_what_is_built_installs_in_a_fresh_environment_and_works(dist: Path, kind: str, tmp_path: Path) -> None:
    [artefact] = dist.glob(f"tagfs-{__version__}*.{kind}")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    # The libraries that it needs, and what builds it, are those of this environment.
    [site] = (tmp_path / "venv/lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(ours) + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = run(*pip, "--force-reinstall", "--ignore-installed", artefact)
    assert done.returncode == 0, done.stderr
    where = run(python, "-c", "import tagfs; print(tagfs.__file__)").stdout
    assert where.startswith(str(site)), where
    assert run(tmp_path / "venv/bin/tagfs", "--version").stdout == f"tagfs {__version__}\n"
    assert run(tmp_path / "venv/bin/tagfs", "status", tmp_path / "none").returncode == 3


def test_the_archives_hold_what_they_should(dist: Path) -> None:
    [wheel], [source] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    in_wheel = zipfile.ZipFile(wheel).namelist()
    assert {"tagfs/py.typed", "tagfs/cli.py"} <= set(in_wheel)
    assert {name.split("/")[0] for name in in_wheel} == {"tagfs", f"tagfs-{__version__}.dist-info"}
    with tarfile.open(source) as archive:
        in_source = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"systemd/tagfs@.service", "scripts/install", "Makefile", "LICENSE", "docs/format.md"} <= in_source
    assert not [name for name in in_source if name.startswith((".git/", ".venv/", "dist/"))]


def test_there_is_one_version() -> None:
    assert re.search(r'^dynamic = \["version"\]', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


# -- manual pages


def test_every_command_has_a_manual_page_of_its_own(share: Path) -> None:
    pages = {path.name for path in (share / "man/man1").iterdir()}
    assert pages >= {"tagfs.1.gz", *(f"tagfs-{name}.1.gz" for name in COMMANDS)}


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_manual_pages_are_well_formed_and_complete(share: Path) -> None:
    for path in (share / "man/man1").iterdir():
        done = run("man", "--warnings", "--local-file", path, LC_ALL="C.UTF-8", MANWIDTH="80")
        assert (done.returncode, done.stderr) == (0, ""), path
        assert re.search(r"^NAME\n +tagfs\S* +- +\w+", done.stdout, re.MULTILINE), path
    text = gzip.decompress((share / "man/man1/tagfs-mount.1.gz").read_bytes()).decode().replace("\\-", "-")
    for flag in ("--read-only", "--drop-privileges", "TAGFS_READ_ONLY", "EXIT CODES", "EXAMPLES"):
        assert flag in text


# -- completions


def offered_by_bash(share: Path, line: str) -> set[str]:
    words = line.split(" ")
    script = f'source "$0"; COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; _tagfs 2>/dev/null'
    script += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = run("bash", "--norc", "-c", script, share / "bash-completion/completions/tagfs", *words)
    assert done.stderr == ""
    return set(done.stdout.splitlines())


def offered_by_fish(share: Path, line: str) -> set[str]:
    done = run(
        "fish", "--no-config", "-c", f"source {share}/fish/vendor_completions.d/tagfs.fish; complete -C '{line}'"
    )
    assert done.stderr == ""
    return {offer.split("\t")[0] for offer in done.stdout.splitlines()}


def completed_by_zsh(share: Path, line: str, expected: str) -> None:
    """Type a line and a tab into a shell."""
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "> "})
    shown = ""

    def read(until: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + PATIENCE
        while until not in shown:
            assert time.monotonic() < deadline, f"no {until!r} in {shown!r}"
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")

    try:
        setup = f"unsetopt zle_bracketed_paste; fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit"
        os.write(terminal, f"{setup}; compinit -D -u; print rea''dy\n".encode())
        read("ready\r\n")
        shown = ""
        os.write(terminal, f"{line}\t".encode())
        read(expected)
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


SHELLS = {"bash": offered_by_bash, "fish": offered_by_fish}


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_flags_values_and_directories_are_offered(share: Path, shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    offered = SHELLS[shell]
    assert set(COMMANDS) <= offered(share, "tagfs ")
    assert offered(share, "tagfs mo") == {"mount"}
    assert {"--read-only", "--drop-privileges"} <= offered(share, "tagfs mount --")
    assert offered(share, "tagfs unmount --l") == {"--lazy", "--log-level"}
    assert offered(share, "tagfs convert /s --codec z") == {"zstd"}
    assert offered(share, "tagfs mount --log-level w") == {"warning"}
    assert "mount" in offered(share, "tagfs help m")
    (tmp_path / "a store").mkdir()
    assert any("a store" in one.replace("\\", "") for one in offered(share, f"tagfs status {tmp_path}/a"))


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tagfs unm", "tagfs unmount "),
        ("tagfs mount --drop-p", "--drop-privileges"),
        ("tagfs mount --codec=zs", "--codec=zstd"),
        ("tagfs help unm", "help unmount"),
    ],
)
def test_zsh_completes(share: Path, line: str, expected: str) -> None:
    completed_by_zsh(share, line, expected)


def test_bash_and_zsh_take_their_completions_for_well_formed(share: Path) -> None:
    for shell, path in (("bash", "bash-completion/completions/tagfs"), ("zsh", "zsh/site-functions/_tagfs")):
        if shutil.which(shell) is not None:
            done = eventually(lambda: run(shell, "-n", share / path))  # noqa: B023
            assert (done.returncode, done.stderr) == (0, "")
