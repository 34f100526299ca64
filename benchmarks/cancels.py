"""From POST .../cancel to the whole process group gone, a grandchild that ignores SIGTERM included.

    python -m benchmarks.cancels [--count 200]

The goals: p99 under 1 s, and afterwards no process and no work folder left.
"""

from __future__ import annotations

import argparse
import time

from app.jobs.procfs import group_members
from benchmarks._service import finish, machine, percentile, service, submit, wait_until


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    gone_ms, groups = [], []
    with service(KIND_PACKAGES="tests.kinds") as (client, _, workspace):
        for turn in range(count):
            parameters = {"kind": "hang", "grandchild": turn % 2 == 0}
            job = submit(client, "hang", parameters, force=True)
            wait_until(lambda job=job: client.get(job).json()["phase"] == "hang", 30)
            group = int(client.get(f"{job}/log").text.split()[1])
            groups.append(group)
            began = time.perf_counter()
            client.post(f"{job}/cancel").raise_for_status()
            wait_until(lambda group=group: not group_members(group), 30, pause_sec=0.002)
            gone_ms.append((time.perf_counter() - began) * 1000)
            ended = finish(client, job)
            if ended["status"] != "cancelled":
                raise SystemExit(ended)
        left = sum(len(group_members(group)) for group in groups)
        folders = list(workspace.glob("jobs/*/*/*"))
    print(f"{machine()}; {count} cancels, half of them with a grandchild; all ignore SIGTERM")
    print(f"gone after p50 {percentile(gone_ms, 0.5):.0f} ms, p99 {percentile(gone_ms, 0.99):.0f} ms (goal 1000)")
    print(f"left behind: {left} processes, {len(folders)} work folders")


if __name__ == "__main__":
    main()
