"""What only the SQLite record store has: its file, its indexes, its refusals."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import struct
from pathlib import Path

import pytest

from app.errors import StoreUnavailable
from app.storage.records_sqlite import SqliteRecords
from app.storage.sqlite_schema import SCHEMA_VERSION
from app.storage.sqlite_worker import connect
from tests.contract.jobs import accepted, draft, together

pytestmark = pytest.mark.anyio


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable) as refusal:
        await SqliteRecords(tmp_path / "file" / "records.sqlite3").start()
    assert str(tmp_path / "file") in (refusal.value.received or "")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.sqlite3").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreUnavailable):
        await SqliteRecords(tmp_path / "records.sqlite3").start()


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreUnavailable, match="cannot be opened") as refusal:
        await SqliteRecords(path).start()
    assert "newer" in (refusal.value.received or "")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_every_list_query_reads_an_index_in_order(tmp_path: Path, anyio_backend: str) -> None:
    """A page costs the same with a hundred thousand jobs as with a thousand: nothing is sorted, nothing is scanned."""
    records = SqliteRecords(tmp_path / "records.sqlite3")
    await records.start()
    await together(records.accept(draft()) for _ in range(10))
    await records.close()
    filters = ("pid", "status", "action")
    with contextlib.closing(connect(tmp_path / "records.sqlite3")) as connection:
        for count in range(len(filters) + 1):
            for chosen in itertools.combinations(filters, count):
                where = " AND ".join(f"{name} = 'x'" for name in ("uid", *chosen))
                query = f"SELECT * FROM jobs WHERE {where} AND seq < 5 ORDER BY seq DESC LIMIT 10"
                (plan,) = (row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
                assert plan.startswith("SEARCH jobs USING INDEX"), plan
                assert all(f"{name}=?" in plan for name in ("uid", *chosen)), plan
                assert "seq<?" in plan, plan


async def test_waiting_writers_share_a_commit(tmp_path: Path, anyio_backend: str) -> None:
    """A commit is an fsync; 200 accepts at once must not be 200 of them."""
    path = tmp_path / "records.sqlite3"
    records = SqliteRecords(path)
    await records.start()
    await accepted(records)
    before = _commits(path)
    jobs = await together(records.accept(draft()) for _ in range(200))
    made = _commits(path) - before
    await records.close()
    assert len({job.oid for job, _ in jobs}) == 200
    assert 1 <= made <= 50


def test_commits_are_on_the_disk_when_they_return(tmp_path: Path) -> None:
    with contextlib.closing(connect(tmp_path / "records.sqlite3")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def _commits(path: Path) -> int:
    """Commits in the write-ahead log: frames whose header has a database size (https://sqlite.org/walformat.html)."""
    wal = Path(f"{path}-wal").read_bytes()
    frame = 24 + struct.unpack(">I", wal[8:12])[0]
    return sum(wal[at + 4 : at + 8] != b"\0\0\0\0" for at in range(32, len(wal) - frame + 1, frame))
