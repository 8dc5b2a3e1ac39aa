"""The inventory of manifests: it waits while they change, and tells once what is declared twice."""

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tagfs.declared import PATIENCE, ManifestsInventory
from tagfs.errors import InventoryIncomplete, ManifestsChanging
from tagfs.manifests import Found, Manifests
from tagfs.names import RepositoryKey

KEY = RepositoryKey("team", "web")
OBJECT = "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepository\nmetadata: {namespace: team, name: web}\n"


class Changing(Manifests):
    """Manifests that change for so many looks."""

    def __init__(self, path: Path, looks: int) -> None:
        super().__init__([str(path)], settled=0)
        self.looks = looks

    def read(self) -> Found:
        self.looks -= 1
        if self.looks >= 0:
            raise ManifestsChanging("changed a moment ago")
        return super().read()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(OBJECT)
    return tmp_path


async def test_it_waits_while_they_change(tree: Path, autojump_clock: MockClock) -> None:
    inventory = ManifestsInventory(Changing(tree, 5))
    assert await inventory.keys() == {KEY}
    assert inventory.last_complete == trio.current_time()
    began = trio.current_time()
    with pytest.raises(ManifestsChanging):
        await ManifestsInventory(Changing(tree, 1000)).keys()
    assert PATIENCE <= trio.current_time() - began <= PATIENCE + 1


async def test_what_is_twice_is_told_once(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "b.yaml").write_text(OBJECT)
    inventory = ManifestsInventory(Manifests([str(tree)], settled=0))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await inventory.keys() == {KEY}
    [record] = caplog.records
    assert f"team/web is declared twice, which is one list: {tree}/a.yaml:1 and {tree}/b.yaml:1" in record.getMessage()


async def test_an_error_is_an_error(tree: Path) -> None:
    (tree / "b.yaml").write_text("a: [\n")
    with pytest.raises(InventoryIncomplete):
        await ManifestsInventory(Manifests([str(tree)], settled=0)).keys()


async def test_nobody_departs(tree: Path, autojump_clock: MockClock) -> None:
    inventory = ManifestsInventory(Manifests([str(tree)], settled=0))
    with trio.move_on_after(1000) as scope:
        async with inventory.departures() as departures:
            async for _ in departures:
                raise AssertionError("somebody did")
    assert scope.cancelled_caught
    assert inventory.is_synced
