"""A trtexec for the tests that times an engine too: the double, with `--loadEngine` and `--exportTimes`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.doubles.trtexec_double.main import Failed, Run
from tests.doubles.trtexec_double.options import parse
from tests.doubles.trtexec_double.releases import release, setting
from tests.toolkit.trt import ROOT

RUNS = 12
"""Timed runs of one start; the n-th, counted from 0, computes for (n + 1) ms between copies of 0.25 and 0.5 ms."""
WARM_UP_RUNS = 3
"""Before those, of 100 ms each: old releases export them too."""


class TimingRun(Run):
    """`timed.txt` beside the executable gets a line with the arguments of each timed start, `pids.txt` with its id."""

    def build(self, arguments: list[str]) -> None:
        options = parse(arguments, self.release, 0, lambda text: self.say("W", text))
        if "loadEngine" not in options:
            super().build(arguments)
            return
        self.device(options)
        if not Path(options.get("loadEngine")).read_bytes().startswith(b"ftrt"):
            raise Failed("[TRT] Error Code 1: Serialization", "Engine deserialization failed", "Engine set up failed")
        if self.told.scenario == "out_of_memory":
            self.out_of_memory()
            raise Failed("Error occurred during inference")
        with Path(self.argv[0]).with_name("timed.txt").open("a") as told:
            told.write(" ".join(arguments) + "\n")
        with Path(self.argv[0]).with_name("pids.txt").open("a") as pids:
            pids.write(f"{os.getpid()}\n")
        warm_up_ms = float(options.get("warmUp"))
        runs = [_run(99, 100.0 * number) for number in range(WARM_UP_RUNS)]
        runs += [_run(number, warm_up_ms + 100 * number) for number in range(RUNS)]
        Path(options.get("exportTimes")).write_text(json.dumps(runs))
        self.summary()


def _run(number: int, at_ms: float) -> dict[str, float]:
    compute = number + 1.0
    starts = {"startEnqMs": at_ms, "startComputeMs": at_ms + 0.25}
    return {**starts, "h2dMs": 0.25, "computeMs": compute, "d2hMs": 0.5, "latencyMs": compute + 0.75}


def main(argv: Sequence[str]) -> int:
    told = setting(Path(argv[0]), os.environ)
    return TimingRun(release(told.release), told, argv).run()


def timing_trtexec(folder: Path, version: str, scenario: str = "success") -> Path:
    """An executable `trtexec` of a release, in the folder, which is to be the PATH."""
    (folder / "trtexec.json").write_text(json.dumps({"release": version, "scenario": scenario}))
    path = folder / "trtexec"
    lines = [
        f"#!{sys.executable}",
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from tests.toolkit.trtexec_timing import main",
        "sys.exit(main(sys.argv))",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path
