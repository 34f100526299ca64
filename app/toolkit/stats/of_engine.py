"""Stats of a TensorRT engine: what its header tells without TensorRT, and the manifest beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.toolkit.errors import CorruptFile, EmptyFile, FileMissing
from app.toolkit.stats.base import ModelStats

# TensorRT's plan header, readable without TensorRT for engines of 8.6 and later (NVIDIA's samples, printPlanVersion).
PLAN_MAGIC = b"ftrt"
PLAN_SERIALIZATION_AT = slice(4, 8)
PLAN_VERSION_AT = slice(24, 28)
MAX_ENGINE_METADATA_BYTES = 16 << 20
METADATA_KEYS = ("description", "version", "task", "stride", "batch", "imgsz", "dla")


def stats_of_engine(path: Path) -> ModelStats:
    """Size, the TensorRT version from the plan's header, Ultralytics' own header, `<stem>_manifest.json` beside it.

    Raises FileMissing, EmptyFile or CorruptFile.
    """
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a TensorRT engine", received=str(path))
    with path.open("rb") as file:
        head = file.read(32)
        if not head:
            raise EmptyFile(f"{path.name} is empty", expected="a TensorRT engine", received="0 bytes")
        details = {}
        skipped = int.from_bytes(head[:4], "little")
        if head[:4] != PLAN_MAGIC and 0 < skipped <= MAX_ENGINE_METADATA_BYTES and head[4:5] == b"{":
            file.seek(4)
            details = _engine_metadata(file.read(skipped))
            head = file.read(32)
    if head[:4] != PLAN_MAGIC:
        raise CorruptFile(
            f"{path.name} has no plan header",
            expected="a TensorRT engine of 8.6 or later, which begins with 'ftrt'",
            received=f"bytes beginning {head[:4].hex()}",
        )
    if len(head) < PLAN_VERSION_AT.stop:
        raise CorruptFile(f"{path.name} is cut within its header", expected="a whole engine", received="its beginning")
    details["tensorrt_version"] = ".".join(str(number) for number in head[PLAN_VERSION_AT])
    details["serialization_version"] = str(int.from_bytes(head[PLAN_SERIALIZATION_AT], "little"))
    return ModelStats(
        path,
        "engine",
        path.stat().st_size,
        details=details,
        manifest=_manifest(path.with_name(f"{path.stem}_manifest.json")),
        notes=("parameters, layers and MACs unknown: only TensorRT of the same version can open an engine",),
    )


def _engine_metadata(text: bytes) -> dict[str, str]:
    entries = _json_object(text)
    if entries is None:
        return {}
    found = {key: str(entries[key]) for key in METADATA_KEYS if key in entries}
    if isinstance(entries.get("names"), (dict, list)) and entries["names"]:
        found["classes"] = str(len(entries["names"]))
    return {"header": "Ultralytics", **found}


def _manifest(path: Path) -> dict[str, Any] | None:
    """What the service wrote beside an engine that it built; None where nothing readable lies there."""
    try:
        return _json_object(path.read_bytes()) if path.stat().st_size <= MAX_ENGINE_METADATA_BYTES else None
    except OSError:
        return None


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entries if isinstance(entries, dict) else None
