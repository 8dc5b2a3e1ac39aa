"""SQLite, as a program calls it that has lists to keep.

Owns: its table and its transactions.
Does not know: what is kept, what it costs.
"""

import sqlite3

import zstandard

from tagfs import taglist
from tagfs.names import RepositoryKey

taglist.revision(b"")
"""What that loads is loaded before the clock starts, as the libraries of a Go program are."""


class Sqlite:
    """One table, a list as one blob with zstd level 1; `group` lists a transaction."""

    def __init__(self, path: str, synchronous: str, group: int) -> None:
        self.database = sqlite3.connect(f"{path}/tags.db", isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute(f"PRAGMA synchronous={synchronous}")
        self.database.execute("CREATE TABLE IF NOT EXISTS tags (key TEXT PRIMARY KEY, list BLOB) WITHOUT ROWID")
        self.encode = zstandard.ZstdCompressor(level=1, write_checksum=True).compress
        self.decode = zstandard.ZstdDecompressor().decompress
        self.group = group
        self.pending = 0

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        plain = "\n".join([*tags, ""]).encode()
        taglist.revision(plain)
        if self.pending == 0:
            self.database.execute("BEGIN")
        self.database.execute("REPLACE INTO tags VALUES (?, ?)", (str(key), self.encode(plain)))
        self.pending += 1
        if self.pending == self.group:
            self._commit()

    def tags(self, key: RepositoryKey) -> list[str]:
        (stored,) = self.database.execute("SELECT list FROM tags WHERE key = ?", (str(key),)).fetchone()
        return taglist.decode(self.decode(stored))

    def close(self) -> None:
        self._commit()
        self.database.close()

    def _commit(self) -> None:
        if self.pending:
            self.database.execute("COMMIT")
            self.pending = 0
