"""What large files through the S3 artifact store cost, as ratios to the bare `minio` client on the same server.

    S3_ENDPOINT=http://127.0.0.1:9000 S3_ACCESS_KEY=... S3_SECRET_KEY=... python -m benchmarks.s3_streams [--gib 2]

First the store itself: put_stream (hashed and kept in a file until its digest is known), put_file, read and fetch
(hashed too) against fput_object, get_object and fget_object, alternating. Then the service: an upload, a job that takes
it as its input, a download, and how far they move the service's memory. The goal: less than 64 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minio import Minio
from minio.deleteobjects import DeleteObject

from app.config import Settings
from app.storage.artifacts_minio import MinioArtifacts
from benchmarks._service import finish, machine, rss_mib, service, submit
from benchmarks.memory import CHUNK, chunks

BARE = {"put_stream": "fput_object", "put_file": "fput_object", "read": "get_object", "fetch": "fget_object"}


def bare_client() -> Minio:
    address = urlsplit(os.environ["S3_ENDPOINT"])
    keys = (os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"])
    return Minio(
        address.netloc, *keys, secure=address.scheme == "https", region=os.environ.get("S3_REGION", "us-east-1")
    )


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket of this run, removed with all that is in it."""
    client, name = bare_client(), f"optimizing-bench-{uuid.uuid4().hex[:8]}"
    client.make_bucket(name)
    try:
        yield name
    finally:
        found = client.list_objects(name, recursive=True)
        assert not list(client.remove_objects(name, [DeleteObject(str(one.object_name)) for one in found]))
        client.remove_bucket(name)


# -- the store ----------------------------------------------------------------------------------------------------
def bare(name: str, file: Path) -> dict[str, Callable[[], Any]]:
    """The client's own ways, by their names."""
    client = bare_client()

    def get() -> None:
        answer = client.get_object(name, "bare")
        while answer.read(len(CHUNK)):
            pass
        answer.release_conn()

    return {
        "fput_object": lambda: client.fput_object(name, "bare", str(file)),
        "get_object": get,
        "fget_object": lambda: client.fget_object(name, "bare", str(file.with_suffix(".bare"))),
    }


def ours(store: MinioArtifacts, file: Path, count: int) -> dict[str, Callable[[], Any]]:
    """The store's ways, by their names; each makes a coroutine."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield CHUNK

    async def read() -> None:
        async for _ in store.read("ours"):
            pass

    return {
        "put_stream": lambda: store.put_stream("ours", stream(), max_bytes=1 << 50),
        "put_file": lambda: store.put_file("ours", file),
        "read": read,
        "fetch": lambda: store.fetch("ours", file.with_suffix(".ours")),
    }


async def compared(name: str, file: Path, count: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(Seconds of ours, of the bare client's) with a file of `count` MiB, one after the other, each first in turn."""
    settings = Settings(workspace_dir=file.parent / "workspace", artifact_store="minio", s3_bucket=name)
    store, seconds = MinioArtifacts(settings), defaultdict(list)
    await store.start()
    theirs, mine = bare(name, file), ours(store, file, count)

    async def timed(way: str) -> float:
        began = time.perf_counter()
        await (mine[way]() if way in mine else asyncio.to_thread(theirs[way]))
        taken = time.perf_counter() - began
        for left in (".ours", ".bare"):  # or the next one waits for these to reach the disk
            file.with_suffix(left).unlink(missing_ok=True)
        return taken

    for number in range(rounds):
        for way, other in BARE.items():
            order = (way, other) if number % 2 else (other, way)
            taken = {one: await timed(one) for one in order}
            seconds[way].append((taken[way], taken[other]))
    await store.close()
    return seconds


# -- the service --------------------------------------------------------------------------------------------------
@contextmanager
def highest_rss(pid: int) -> Iterator[list[float]]:
    """The most memory that a process had meanwhile, in MiB, as the only item."""
    highest, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            highest[0] = max(highest[0], rss_mib(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()


def through_the_service(name: str, count: int, bare_sec: dict[str, float]) -> None:
    with service(ARTIFACT_STORE="minio", S3_BUCKET=name) as (client, process, _):
        at_rest, sent, received = rss_mib(process.pid), hashlib.sha256(), hashlib.sha256()
        client.timeout = 600
        with highest_rss(process.pid) as highest:
            times = [time.perf_counter()]
            query = {"pid": "P0001", "name": "big.pt"}
            answer = client.post("/optimizing/uploads", params=query, content=chunks(count, sent)).raise_for_status()
            times.append(time.perf_counter())
            parameters = {"kind": "check_model_stats", "input_path": answer.json()["key"]}
            ended = finish(client, submit(client, "check_model_stats", parameters))
            times.append(time.perf_counter())
            with client.stream("GET", answer.headers["location"]) as download:
                for part in download.iter_raw():
                    received.update(part)
            times.append(time.perf_counter())
    equal = answer.json()["sha256"] == sent.hexdigest() == received.hexdigest()
    print(f"service: {count} MiB up and down, digests {'equal' if equal else 'DIFFER'}")
    print(f"  the job on it {ended['status']}: {(ended['error'] or {}).get('code')}, as it is no model")
    print(f"  at rest {at_rest:.0f} MiB, highest {highest[0]:.0f}: moved by {highest[0] - at_rest:.0f} MiB (goal 64)")
    for way, began, end, other in zip(
        ("upload", "stage", "download"), times, times[1:], ("fput_object", "fget_object", "get_object"), strict=False
    ):
        share = bare_sec[other] / (end - began)
        print(f"  {way:<9} {count / (end - began):6.0f} MiB/s, {share:.2f} of {other}'s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    count = int(given.gib * 1024)
    if "S3_ENDPOINT" not in os.environ:
        print("left out: it needs an S3 server in S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY")
        return
    print(f"{machine()}, the S3 server on the same cores; {count} MiB, medians of {given.rounds} rounds")
    with bucket() as name:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            file = Path(folder) / "file"
            with open(file, "wb") as made:
                made.writelines(CHUNK for _ in range(count))
            seconds = asyncio.run(compared(name, file, count, given.rounds))
        bare_sec = {}
        for way, taken in seconds.items():
            mine, bare_sec[BARE[way]] = (statistics.median(column) for column in zip(*taken, strict=True))
            ratios = sorted(other / own for own, other in taken)
            print(
                f"{way:<11} {count / mine:6.0f} MiB/s, {BARE[way]:<12} {count / bare_sec[BARE[way]]:6.0f} MiB/s,"
                f" ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
        through_the_service(name, count, bare_sec)


if __name__ == "__main__":
    main()
