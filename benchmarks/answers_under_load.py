"""How fast the service answers while two exports run, against itself idle, and against a bare FastAPI route.

    python -m benchmarks.answers_under_load [--requests 400]

GET of a job and an accepted POST, one after the other from one client; the goal is a p99 within 4 x of the idle p99.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2

from benchmarks._service import PILLS, finish, free_port, machine, percentile, service, submit, upload, wait_until

BARE = textwrap.dedent(
    """
    import sys, uvicorn
    from fastapi import FastAPI
    app = FastAPI()

    @app.get("/bare")
    async def bare() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
    """
)


def latencies_ms(ask: Callable[[], object], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)
    return taken


def per_second(ask: Callable[[], object], seconds: float) -> float:
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        ask()
        count += 1
    return count / seconds


@contextmanager
def two_exports(client: httpx2.Client, key: str) -> Iterator[None]:
    """Keeps two exports running for the length of the block."""
    over = threading.Event()

    def export_again() -> None:
        with httpx2.Client(base_url=client.base_url, timeout=120) as own:
            while not over.is_set():
                parameters = {"kind": "pt_to_onnx", "input_path": key}
                finish(own, submit(own, "pt_to_onnx_fp32", parameters, force=True), pause_sec=0.1)

    threads = [threading.Thread(target=export_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    yield
    over.set()
    for thread in threads:
        thread.join()


def bare_per_second() -> float:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port)])
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: answers(client), 20)
            return per_second(lambda: client.get("/bare"), 3)
    finally:
        process.terminate()
        process.wait()


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/bare").is_success
    except httpx2.HTTPError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=400)
    count = parser.parse_args().requests
    with service() as (client, _, _):
        key = upload(client, PILLS, "best.pt")
        job = submit(client, "check_model_stats", {"kind": "check_model_stats", "input_path": key})
        finish(client, job)
        body = {"kind": "check_model_stats", "input_path": key}  # the same work: accepted, then copied
        asks: dict[str, Callable[[], object]] = {
            "GET a job": lambda: client.get(job).raise_for_status(),
            "accepted POST": lambda: submit(client, "check_model_stats", body),
        }
        idle = {name: latencies_ms(ask, count) for name, ask in asks.items()}
        throughput = per_second(lambda: client.get(job), 3)
        with two_exports(client, key):
            busy = {name: latencies_ms(ask, count) for name, ask in asks.items()}
    print(f"{machine()}; {count} requests of each")
    for name in asks:
        p99_idle, p99_busy = percentile(idle[name], 0.99), percentile(busy[name], 0.99)
        p50_idle, p50_busy = percentile(idle[name], 0.5), percentile(busy[name], 0.5)
        print(
            f"{name:14s} idle p50 {p50_idle:.1f} p99 {p99_idle:.1f} ms, two exports p50 {p50_busy:.1f} "
            f"p99 {p99_busy:.1f} ms: p99 ratio {p99_busy / p99_idle:.1f}, goal 4.0"
        )
    print(f"GET a job, one client: {throughput / bare_per_second():.2f} of a bare FastAPI route's throughput")


if __name__ == "__main__":
    main()
