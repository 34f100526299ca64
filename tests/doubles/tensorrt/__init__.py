"""A Python package `tensorrt` that has, for the release it plays, that release's names and no other.

It optimises nothing: its engines hold the ONNX file, and answer as ONNX Runtime does on the CPU, at addresses that are
this machine's own.

Checked against: the classes, members and enum numbers of the genuine packages 8.6.1 to 11.4.0, which were imported and
asked (tests/assets/trt/trt_python_names.json); the texts of their AttributeErrors and TypeErrors; NVIDIA's sources of
the bindings, by which an exception that leaves a callback ends the process (here: `Terminated`), and a calibrator's
answer is copied address by address. 8.2 and 8.5 have no such packages: they are 8.6.1 without the names that the
bindings' sources had not yet. tests/toolkit/test_trt_bindings.py asks the genuine packages themselves.

What it cannot know: all that happens behind the bindings. Whether a graph is taken, how layers are fused, which of them
a DLA takes, what a timing cache, a calibration cache or the inspector's JSON holds, how phases of progress are called,
and most of the messages are made up or from users' logs. Nor what a GPU makes of an address, a stream or a precision.

`make` gives a module. With tests/doubles on the PYTHONPATH `import tensorrt` gets one that plays what the environment
says: TENSORRT_DOUBLE_RELEASE, _SCENARIO, _DLA_CORES.
"""

from __future__ import annotations

import os
import sys

from tests.doubles.tensorrt.module import make
from tests.doubles.tensorrt.releases import RELEASES
from tests.doubles.tensorrt.scene import SCENARIOS, Scene, Terminated

__all__ = ["RELEASES", "SCENARIOS", "Scene", "Terminated", "make"]

if __name__ == "tensorrt":
    sys.modules[__name__] = make(
        os.environ.get("TENSORRT_DOUBLE_RELEASE", "10.3.0"),
        os.environ.get("TENSORRT_DOUBLE_SCENARIO", "success"),
        dla_cores=int(os.environ.get("TENSORRT_DOUBLE_DLA_CORES", "0")),
    )
