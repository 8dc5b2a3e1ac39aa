"""What `tagfs check` says of a store, and what a store holds to the byte."""

import subprocess
import sys
from pathlib import Path

from tagfs.check import Check
from tagfs.findings import Finding
from tagfs.names import STAGE_DIRECTORY
from tagfs.policy import DEFAULT_LIST_LIMIT


def problems(store: Path) -> list[Finding]:
    """The problems that a check finds."""
    check = Check(str(store), DEFAULT_LIST_LIMIT, is_repairing=False, settling_seconds=0)
    try:
        for _ in check.run():
            pass
    finally:
        check.close()
    return [finding for finding in check.findings.kept if finding.is_problem]


def check_command(store: Path) -> tuple[int, str]:
    """(exit code, output) of `tagfs check STORE`."""
    command = [sys.executable, "-m", "tagfs", "check", str(store)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path), "PATH": "/bin"}
    )
    return done.returncode, done.stdout + done.stderr


def files(store: Path, without: tuple[str, ...] = (STAGE_DIRECTORY,)) -> dict[str, bytes]:
    """Relative path -> content of every file of a store that is below none of `without`."""
    found = {}
    for path in sorted(store.rglob("*")):
        relative = path.relative_to(store)
        if path.is_file() and not any(relative.is_relative_to(left_out) for left_out in without):
            found[str(relative)] = path.read_bytes()
    return found


def stages(store: Path) -> list[str]:
    """The staged lists of a store."""
    directory = store / STAGE_DIRECTORY
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []
