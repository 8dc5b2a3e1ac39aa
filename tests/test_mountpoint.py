"""Mount point: what the machine's mount table says, however odd its lines are."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import mountpoint


@pytest.fixture
def tmpfs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Two mounts at one point, the upper one with the source that the test names."""
    point = tmp_path / "a b\\c"
    point.mkdir()
    for source in ("below", request.param):
        subprocess.run(["mount", "-t", "tmpfs", source, point], check=True)
    yield point
    for _ in range(2):
        subprocess.run(["umount", point], check=True)


@pytest.mark.mount
@pytest.mark.parametrize("tmpfs", ["", "a source\twith\nspaces", "-"], indirect=True)
def test_of_two_mounts_at_one_point_the_upper_one_is_told(tmpfs: Path, request: pytest.FixtureRequest) -> None:
    source = request.node.callspec.params["tmpfs"]
    for found in (mountpoint.mounted_at(str(tmpfs)), mountpoint.holding(str(tmpfs)), mountpoint.holding(f"{tmpfs}/x")):
        assert found is not None
        assert (found.point, found.fstype, found.source, found.is_read_only) == (str(tmpfs), "tmpfs", source, False)
