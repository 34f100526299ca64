"""What the fork server loads once, so that a job's process starts with it: imports, and nothing else.

No CUDA call, no TensorRT, not even `is_available()`: a process forked after CUDA was initialised cannot use it.
A test holds this. A library that is missing here is a kind that cannot run here, not an error.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil

from app.jobs.protocol import NICENESS

os.setpriority(os.PRIO_PROCESS, 0, NICENESS)  # to fork a process of this size takes milliseconds
for _package in ("app.schemas.kinds", "app.jobs.handlers"):
    for _module in pkgutil.iter_modules(importlib.import_module(_package).__path__, f"{_package}."):
        with contextlib.suppress(ImportError):
            importlib.import_module(_module.name)
gc.collect()
gc.freeze()  # a collection in a child would touch, and so copy, every page that it shares
atexit.register(os._exit, 0)  # native libraries complain at length when an interpreter that only forked is taken down
