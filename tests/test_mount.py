"""The life of a mount, with the real kernel."""

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.mount


def test_a_list_written_through_the_mount_is_read_back(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\n")
    assert path.read_text() == "v1\nv2\n"
    assert mount.stop() == 0
    assert [file.name for file in mount.stored("app")] == ["tags.txt"]
