"""Variants: a file that is larger than anything it could hold is not read."""

import os
import random
import struct
from pathlib import Path

import pytest

from tagfs.codec import CODECS, GZIP, ZSTD, Codec, most_stored
from tagfs.disk import Disk
from tagfs.errors import ListCorrupt
from tests.support.stores import KEY, LARGE, SMALL, open_store

HUGE = 1 << 40


@pytest.mark.parametrize("promised", [SMALL, b""], ids=["little", "nothing"])
@pytest.mark.parametrize("codec", [GZIP, ZSTD], ids=lambda codec: codec.name)
def test_a_huge_file_that_promises_little_is_corrupt_and_not_read(
    tmp_path: Path, codec: Codec, promised: bytes
) -> None:
    class Reading(Disk):
        most = 0

        def read(self, file: int, size: int, offset: int = 0) -> bytes:
            self.most = max(self.most, size)
            return super().read(file, size, offset)

    disk = Reading()
    store = open_store(disk, str(tmp_path))
    store.make_namespace(KEY.namespace)
    store.make_repository(KEY)
    path = tmp_path / KEY.directory / f"tags.txt{codec.suffix}"
    path.write_bytes(codec.encode(LARGE if promised else b""))
    os.truncate(path, HUGE - 4)
    with path.open("ab") as file:
        file.write(struct.pack("<I", len(promised)))
    assert store.examine(KEY).fault
    with pytest.raises(ListCorrupt, match=f"{HUGE} bytes are stored"):
        store.read(KEY)
    assert disk.most < 100
    store.close()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_what_does_not_compress_takes_no_more_than_is_allowed(codec: Codec, size: int) -> None:
    assert len(codec.encode(random.Random(size).randbytes(size))) <= most_stored(size)
