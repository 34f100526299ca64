"""What is written beside every engine: where it came from, what it was built with, where it can run.

An engine tells of itself its TensorRT version at most. The manifest, `<stem>_manifest.json`, has what decides whether
another machine loads it, and what is needed to build it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from app.toolkit.errors import CorruptFile
from app.toolkit.onnx_file import write_whole
from app.toolkit.tensorrt.plan import Plan
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import Version, version_of, version_text

MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 16 << 20

BUILDERS = ("trtexec", "python")
BUILT_FROM = ("fp32 onnx", "fp16 onnx", "qdq onnx")
PRECISIONS = ("fp32", "fp16", "int8")
QUANTIZATIONS = ("none", "calibrated", "qdq")
HARDWARE_LEVELS = ("none", "ampere_plus", "same_compute_capability")
CHOICES = {
    "builder": BUILDERS,
    "built_from": BUILT_FROM,
    "precision": PRECISIONS,
    "quantization": QUANTIZATIONS,
    "hardware_compatibility": HARDWARE_LEVELS,
}


@dataclass(frozen=True)
class Manifest:
    """One engine's. Versions are text ("10.3.0.26"); None is what was not known when it was built.

    `built_from` is what the graph that TensorRT parsed was, `precision` what was asked for. `profile` is {"min": [...],
    "opt": [...], "max": [...]} by input name, empty for a static graph. `inputs` and `outputs` are [{"name", "dtype",
    "shape"}]. `device` is gpu, dla0 or dla1. `command` is trtexec's command line, or the builder's settings in order.
    `model` is what the ONNX says of itself (its metadata_props): task, names, input size, preprocessing.
    """

    engine_name: str
    engine_sha256: str
    engine_size_bytes: int
    onnx_name: str
    onnx_sha256: str
    onnx_opset: int
    built_from: str
    tensorrt_version: str
    builder: str
    precision: str
    device: str
    workspace_mib: int
    build_seconds: float
    built_at: str
    command: tuple[str, ...]
    builder_banner: str = ""
    cuda_runtime: str | None = None
    driver: str | None = None
    gpu_name: str | None = None
    compute_capability: str | None = None
    sm_count: int | None = None
    gpu_memory_mib: int | None = None
    os: str | None = None
    arch: str | None = None
    l4t: str | None = None
    dla_layers: int | None = None
    gpu_layers: int | None = None
    mixed_fp16: bool = False
    sparse: bool = False
    quantization: str = "none"
    calibration_sha256: str | None = None
    strongly_typed: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    timing_cache: str | None = None
    ultralytics_header: bool = False
    profile: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> Version | None:
        """The TensorRT that built it, as numbers."""
        return version_of(self.tensorrt_version)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        entries = {one.name: getattr(self, one.name) for one in fields(self)}
        lists = {name: list(value) for name, value in entries.items() if isinstance(value, tuple)}
        return {"manifest_version": MANIFEST_VERSION, **entries, **lists}


def machine_entries(target: Target) -> dict[str, Any]:
    """The manifest's fields that say which machine built an engine."""
    capability = target.compute_capability
    return {
        "driver": target.driver,
        "gpu_name": target.gpu_name,
        "compute_capability": None if capability is None else version_text(capability),
        "sm_count": target.sm_count,
        "gpu_memory_mib": target.memory_total_mib,
        "os": target.os,
        "arch": target.arch,
        "l4t": target.l4t,
    }


def engine_entries(plan: Plan) -> dict[str, Any]:
    """The manifest's fields that say which file the engine is; reads the whole file."""
    return {
        "engine_name": plan.path.name,
        "engine_sha256": sha256_of(plan.path),
        "engine_size_bytes": plan.size_bytes,
        "ultralytics_header": plan.offset > 0,
    }


def model_metadata(plan: Plan, manifest: Manifest | None) -> dict[str, str]:
    """What an engine's model says of itself, as texts in the form of an ONNX file's metadata_props.

    From the manifest, else from the header that Ultralytics wrote before the plan; empty where neither tells.
    """
    told = manifest.model if manifest is not None and manifest.model else plan.prefix
    return {str(key): value if isinstance(value, str) else str(value) for key, value in told.items()}


def manifest_path(engine: Path) -> Path:
    """Where an engine's manifest lies."""
    return engine.with_name(f"{engine.stem}_manifest.json")


def write_manifest(manifest: Manifest, engine: Path) -> Path:
    """Write the manifest beside its engine, whole or not at all; returns its path."""
    path = manifest_path(engine)
    write_whole((json.dumps(manifest.as_dict(), indent=2, ensure_ascii=False) + "\n").encode(), path)
    return path


def read_manifest(engine: Path) -> Manifest | None:
    """The manifest beside an engine; None where there is none. Raises CorruptFile for one that is no manifest."""
    path = manifest_path(engine)
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_MANIFEST_BYTES else None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path.name} is no JSON", expected="an engine's manifest", received=str(error)) from error
    if not isinstance(entries, dict):
        raise CorruptFile(f"{path.name} is no manifest", expected="a JSON object", received=type(entries).__name__)
    return manifest_from_dict(entries, path.name)


def manifest_from_dict(entries: Mapping[str, Any], name: str = "the manifest") -> Manifest:
    """A manifest out of its JSON. Keys that it does not know are left out. Raises CorruptFile."""
    if entries.get("manifest_version") != MANIFEST_VERSION:
        raise CorruptFile(
            f"{name} is of another kind",
            expected=f"manifest_version {MANIFEST_VERSION}",
            received=str(entries.get("manifest_version")),
        )
    hints = get_type_hints(Manifest)
    found = {key: entries[key] for key in hints if key in entries}
    required = [one.name for one in fields(Manifest) if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in required if name not in found]
    if missing:
        raise CorruptFile(f"{name} lacks {', '.join(missing)}", expected="every field of a manifest")
    wrong = [key for key, value in found.items() if not _fits(key, value, hints[key])]
    if wrong:
        key = wrong[0]
        wanted = ", ".join(CHOICES[key]) if key in CHOICES else str(hints[key])
        raise CorruptFile(f"{name}: {key} is not what it must be", expected=wanted, received=repr(found[key])[:100])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return Manifest(**values)


def sha256_of(path: Path) -> str:
    """A file's digest, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _fits(key: str, value: object, hint: Any) -> bool:
    """Is a JSON value what the field's annotation says?"""
    if key in CHOICES:
        return value in CHOICES[key]
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(key, value, one) for one in get_args(hint))
    kind = get_origin(hint) or hint
    if kind is tuple:
        return isinstance(value, list) and all(_fits(key, item, get_args(hint)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind
