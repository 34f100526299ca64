"""How far a 2 GiB upload and download move the service's memory, and what it takes at rest.

    python -m benchmarks.memory [--gib 2]

The goals: under 150 MiB at rest with torch never imported, and less than 64 MiB more with 2 GiB going through.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks._service import machine, rss_mib, service

CHUNK = bytes(range(256)) * 4096  # 1 MiB


def chunks(count: int, sha: hashlib._Hash) -> Iterator[bytes]:
    for _ in range(count):
        sha.update(CHUNK)
        yield CHUNK


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=2)
    count = int(parser.parse_args().gib * 1024)
    with service() as (client, process, _):
        at_rest, highest, over = rss_mib(process.pid), [0.0], threading.Event()

        def watch() -> None:
            while not over.is_set():
                highest[0] = max(highest[0], rss_mib(process.pid))
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        sha = hashlib.sha256()
        began = time.perf_counter()
        answer = client.post(
            "/optimizing/uploads", params={"pid": "P0001", "name": "big.bin"}, content=chunks(count, sha)
        )
        up_sec = time.perf_counter() - began
        stored = answer.raise_for_status().json()
        received, began = hashlib.sha256(), time.perf_counter()
        with client.stream("GET", answer.headers["location"]) as download:
            for part in download.iter_raw():
                received.update(part)
        down_sec = time.perf_counter() - began
        over.set()
        watcher.join()
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    equal = stored["sha256"] == sha.hexdigest() == received.hexdigest()
    print(f"{machine()}; {count} MiB up and down, digests {'equal' if equal else 'DIFFER'}")
    print(f"at rest {at_rest:.0f} MiB (goal 150), torch loaded: {'libtorch' in maps}")
    print(f"highest {highest[0]:.0f} MiB: moved by {highest[0] - at_rest:.0f} MiB (goal 64)")
    print(f"up {count / up_sec:.0f} MiB/s, down {count / down_sec:.0f} MiB/s, client on the same cores")


if __name__ == "__main__":
    main()
