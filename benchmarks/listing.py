"""A page of the job list with 1,000 and with 100,000 records.

    python -m benchmarks.listing

For each combination of filters; the goal is a p99 within 2 x.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from app.storage.records import JobRecord
from app.storage.records_sqlite import SqliteRecords, _to_row
from benchmarks._service import machine, percentile

STATUSES = ("completed", "completed", "completed", "failed", "cancelled", "queued")
ACTIONS = ("pt_to_onnx_fp32", "pt_to_onnx_fp16", "check_model_stats")
PAGES = 300


def fill(path: Path, count: int) -> None:
    """Job rows of one user in ten projects, written past the store: accepting each would take minutes."""
    with sqlite3.connect(path) as connection:
        for number in range(1, count + 1):
            job = JobRecord(
                uid="0001",
                pid=f"P{number % 10:04d}",
                oid=f"O{number:06d}",
                action=ACTIONS[number % 3],
                kind="pt_to_onnx",
                parameters={"input_path": "artifacts/P0001/optimizing/O0001/best.pt"},
                slot="cpu",
                created_at=float(number),
                status=STATUSES[number % 6],
                seq=number,
            )
            row = _to_row(asdict(job))
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", row)


async def page_ms(count: int) -> dict[str, float]:
    """p99 of a page of 50 by combination of filters, first pages and pages from the middle alike."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteRecords(Path(folder) / "records.sqlite3")
        await store.start()
        fill(Path(folder) / "records.sqlite3", count)
        result = {}
        for chosen in itertools.product((False, True), repeat=3):
            filters = {
                name: value
                for name, value, use in zip(
                    ("pid", "status", "action"), ("P0003", "failed", ACTIONS[0]), chosen, strict=True
                )
                if use
            }
            taken = []
            for turn in range(PAGES):
                before = None if turn % 2 else count // 2
                began = time.perf_counter()
                await store.find("0001", before=before, limit=50, **filters)
                taken.append((time.perf_counter() - began) * 1000)
            result["+".join(filters) or "no filter"] = percentile(taken, 0.99)
        await store.close()
        return result


def main() -> None:
    small, large = (asyncio.run(page_ms(count)) for count in (1_000, 100_000))
    print(f"{machine()}; {PAGES} pages of 50 for each combination; p99 in ms")
    for name in small:
        ratio = large[name] / small[name]
        print(f"{name:22s} 1,000 records {small[name]:.2f}, 100,000 records {large[name]:.2f}: {ratio:.2f} x")
    print(f"all together: {max(large.values()) / max(small.values()):.2f} x, goal 2")


if __name__ == "__main__":
    main()
