"""What is freed is kept while PyTorch is timed, and given back after."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")

COUNTED = """
import json, resource
from pathlib import Path
import numpy as np
from app.toolkit.benchmark.malloc import freed_memory_kept, give_back

def page_faults():
    np.ones(64 << 18, np.float32)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(64 << 18, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

before = page_faults()
with freed_memory_kept():
    within, kept_mib = page_faults(), resident_mib()
give_back()
print(json.dumps([before, within, kept_mib, resident_mib()]))
"""


def test_memory_comes_from_the_kernel_once_instead_of_with_each_call() -> None:
    """In a process of its own: what malloc does depends on what was freed before."""
    done = subprocess.run([sys.executable, "-c", COUNTED], check=True, capture_output=True, text=True)
    before, within, kept_mib, left_mib = json.loads(done.stdout)
    assert 5 * within < before  # pages may be of 4 KiB or of 2 MiB
    assert kept_mib - left_mib > 60
