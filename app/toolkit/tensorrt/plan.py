"""What a TensorRT engine file (a "plan") tells of itself without TensorRT: its header, and Ultralytics' before it.

A plan begins with `ftrt`; its bytes 24 to 27 are the version of TensorRT that wrote it (NVIDIA's samples,
`printPlanVersion` of `trtexec --getPlanVersionOnly`: "only for engines created with 8.6 and forward"). Ultralytics puts
a little-endian int32 length and that many bytes of JSON before the plan, which TensorRT itself does not skip.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from app.toolkit.errors import CorruptFile, EmptyFile, FileMissing, NotAModel
from app.toolkit.tensorrt.versions import Version, version_text

MAGIC = b"ftrt"
SERIALIZATION_AT = slice(4, 8)
VERSION_AT = slice(24, 28)
HEADER_BYTES = VERSION_AT.stop
FIRST_READABLE: Version = (8, 6)
KNOWN_MAJORS = range(8, 20)  # anything else at these bytes is no version
MAX_PREFIX_BYTES = 16 << 20

# How other files begin that are taken for engines. An ONNX file begins with its ir_version, a protobuf varint.
OTHERS = (
    (b"PK\x03\x04", "a zip archive, as a torch checkpoint is"),
    (b"\x80", "a pickle, as an old torch checkpoint is"),
    (b"{", "JSON text"),
)
ONNX_BEGINS = (b"\x08", range(3, 20), (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42"))


@dataclass(frozen=True)
class Plan:
    """One engine file.

    `version` is (major, minor, patch, build), None where the header has none (before 8.6). `offset` is where the plan
    begins in the file: 0, or behind the `prefix` that Ultralytics wrote.
    """

    path: Path
    size_bytes: int
    version: Version | None
    serialization_version: int
    offset: int = 0
    prefix: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "name": self.path.name,
            "size_bytes": self.size_bytes,
            "tensorrt_version": None if self.version is None else version_text(self.version),
            "serialization_version": self.serialization_version,
            "ultralytics_header": dict(self.prefix) if self.offset else None,
        }


def read_plan(path: Path) -> Plan:
    """Read an engine's header. Raises FileMissing, EmptyFile, NotAModel (another kind of file) or CorruptFile."""
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a TensorRT engine", received=str(path))
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        if not head:
            raise EmptyFile(f"{path.name} is empty", expected="a TensorRT engine", received="0 bytes")
        offset, prefix = 0, dict[str, Any]()
        length = int.from_bytes(head[:4], "little")
        if head[:4] != MAGIC and head[4:5] == b"{" and 0 < length <= MAX_PREFIX_BYTES:
            offset, prefix, head = _behind_prefix(file, path.name, length)
    _check_header(head, path.name)
    serialization = int.from_bytes(head[SERIALIZATION_AT], "little")
    version = _version_in(head) if serialization == 0 else None
    return Plan(path, path.stat().st_size, version, serialization, offset, prefix)


def strip_prefix(plan: Plan, target: Path) -> Plan:
    """Write the plan alone, as TensorRT takes it, and read it again. `target` appears whole or not at all."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with plan.path.open("rb") as source, part.open("wb") as file:
            source.seek(plan.offset)
            shutil.copyfileobj(source, file, 1 << 20)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return read_plan(target)


def _behind_prefix(file: BinaryIO, name: str, length: int) -> tuple[int, dict[str, Any], bytes]:
    file.seek(4)
    text = file.read(length)
    if len(text) < length:
        raise CorruptFile(
            f"{name} is cut within the JSON that Ultralytics writes before a plan",
            expected=f"{length} bytes of JSON, then a plan",
            received=f"{len(text)} bytes of it",
        )
    return 4 + length, _json_object(text), file.read(HEADER_BYTES)


def _check_header(head: bytes, name: str) -> None:
    if head[:4] == MAGIC and len(head) == HEADER_BYTES:
        return
    if head[:4] == MAGIC or MAGIC.startswith(head):
        raise CorruptFile(
            f"{name} is cut within its header",
            expected=f"a whole engine, whose header alone is {HEADER_BYTES} bytes",
            received=f"{len(head)} bytes of it",
            hint="build or copy the engine again",
        )
    what = _recognised(head)
    if what:
        raise NotAModel(
            f"{name} is no TensorRT engine but {what}",
            expected="a plan, which begins with 'ftrt'",
            received=f"bytes beginning {head[:4].hex()}",
        )
    raise CorruptFile(
        f"{name} has no plan header",
        expected="a TensorRT engine, which begins with 'ftrt'",
        received=f"bytes beginning {head[:4].hex()}",
        hint="an engine that was encrypted or packed must be unpacked; another file must be built into an engine first",
    )


def _recognised(head: bytes) -> str:
    field_1, ir_versions, next_fields = ONNX_BEGINS
    if head[:1] == field_1 and len(head) > 2 and head[1] in ir_versions and head[2:3] in next_fields:
        return "an ONNX file, which an engine must be built from"
    return next((what for begins, what in OTHERS if head.startswith(begins)), "")


def _version_in(head: bytes) -> Version | None:
    version = tuple(head[VERSION_AT])
    return version if version[0] in KNOWN_MAJORS and version >= FIRST_READABLE else None


def _json_object(text: bytes) -> dict[str, Any]:
    """Ultralytics' own reader takes what is no JSON for no metadata, and so do we."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
