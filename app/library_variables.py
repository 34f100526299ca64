"""The environment that the heavy libraries are imported in, by a job's process and by the commands that work alone.

They read it as they are imported, so it must be set before.
"""

from __future__ import annotations

FIXED_VARIABLES = {
    # Ultralytics neither installs packages nor fetches weights nor phones home, and unpickles under its own guard.
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "1",
    "HF_HUB_OFFLINE": "1",
    # ONNX Runtime sends telemetry since 1.29, from threads that importing it starts: not with a user's models, and not
    # before a fork.
    "ORT_DISABLE_TELEMETRY": "1",
    # OpenMP's workers spin while they wait: two jobs at once on two cores took twice as long (decisions/0101).
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}
