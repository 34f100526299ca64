"""Stats of a TensorRT engine: what its header tells without TensorRT, and the manifest beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.toolkit.stats.base import ModelStats
from app.toolkit.tensorrt.manifest import MAX_MANIFEST_BYTES, manifest_path
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.versions import version_text

METADATA_KEYS = ("description", "version", "task", "stride", "batch", "imgsz", "dla")


def stats_of_engine(path: Path) -> ModelStats:
    """Size, the TensorRT version from the plan's header, Ultralytics' own header, `<stem>_manifest.json` beside it.

    Raises FileMissing, EmptyFile, NotAModel or CorruptFile.
    """
    plan = read_plan(path)
    details = _told_by(plan.prefix)
    details["tensorrt_version"] = version_text(plan.version)
    details["serialization_version"] = str(plan.serialization_version)
    return ModelStats(
        path,
        "engine",
        plan.size_bytes,
        details=details,
        manifest=_manifest(manifest_path(path)),
        notes=("parameters, layers and MACs unknown: only TensorRT of the same version can open an engine",),
    )


def _told_by(prefix: Mapping[str, Any]) -> dict[str, str]:
    if not prefix:
        return {}
    found = {key: str(prefix[key]) for key in METADATA_KEYS if key in prefix}
    if isinstance(prefix.get("names"), (dict, list)) and prefix["names"]:
        found["classes"] = str(len(prefix["names"]))
    return {"header": "Ultralytics", **found}


def _manifest(path: Path) -> dict[str, Any] | None:
    """What was written beside an engine, be it a manifest of ours or not; None where nothing readable lies there."""
    try:
        entries = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return entries if isinstance(entries, dict) else None
