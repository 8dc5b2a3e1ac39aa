"""tagfs as `make install` puts it in place, once for all tests of a run."""

import functools
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent


def require_environment() -> None:
    """Skip where this is not the virtual environment that `make setup` makes: what installs is not there."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs the environment that `make setup` makes")


@functools.cache
def installed(prefix: str = "/usr") -> Path:
    """The directory (DESTDIR) below which it is; removed when the run ends."""
    require_environment()
    keep = tempfile.TemporaryDirectory(prefix="tagfs-installed-")
    _KEPT.append(keep)
    Path(keep.name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts/install", "--prefix", prefix, "--destdir", keep.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(keep.name)


_KEPT: list["tempfile.TemporaryDirectory[str]"] = []
