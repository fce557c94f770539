"""Writes into one SQLite database, with a write-ahead log
and memory that is mapped, from three processes at once.
"""

import multiprocessing
import sqlite3
from contextlib import closing


def write(number: int) -> None:
    """Commit fifty rows, one by one."""
    with closing(sqlite3.connect("rows.db", timeout=300)) as database:
        for _ in range(50):
            with database:
                database.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * 500))


if __name__ == "__main__":
    with closing(sqlite3.connect("rows.db")) as database:
        assert database.execute("PRAGMA journal_mode = wal").fetchone() == ("wal",)
        database.execute("PRAGMA mmap_size = 10000000")
        database.execute("CREATE TABLE rows (who, what)")
        database.commit()
        with multiprocessing.Pool(3) as pool:
            pool.map(write, range(3))
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (150,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.execute("VACUUM")
