"""The YAML configuration of S4's export: what it names, by which defaults, and what is wrong with it.

    paths:
      exp_dir: /data/exp/exp01          # its checkpoints/ hold detection_best.pt and classification_best.pt
    export:
      out_dir: /data/exp/exp01/export   # {exp_dir}/export where left out
      opset: 17                         # the variable OPSET goes before it
      dynamic_axes: true
      input_shape: [1, 3, 640, 640]     # the checkpoint's own where left out; or a mapping of stages
      compare:
        mode: coverage                  # smoke, coverage, full or auto
        sample_count: 32
        per_class_k: 1
        min_classes: 1000
        max_total: 5000
        stratify_by: [class]
        hardness_bins: [0.0, 0.3, 0.6, 0.85, 1.0]
        hard_per_bin: 8
        limits: {mse_mean: 1.0e-4}      # ours: S4's guide to looser limits needs a place
        kernel_limits: {boxes_px: 0.05}
        data:                           # ours: S4 names no key for the validation images
          detection: {images: val/images, annotations: val/instances.json}
          classification: {images: val/crops}

Paths are relative to the configuration's folder. Nothing heavy is imported here: a mistake is said at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import yaml

DEFAULT_OPSET = 17
MODES = ("coverage", "smoke", "full", "auto")
COUNTS = ("sample_count", "per_class_k", "min_classes", "max_total", "hard_per_bin")
STAGES = ("detection", "classification")

Content = Mapping[str, Any]
Value = TypeVar("Value")


class ConfigFault(Exception):
    """What in the configuration, or among the files that it names, keeps the export from beginning; one line."""


@dataclass(frozen=True)
class StageData:
    """Validation images, a folder, and their COCO annotations if they have any."""

    images: Path
    annotations: Path | None


@dataclass(frozen=True)
class ExportConfig:
    """What to export and how to prove it. `sampling` are the fields of `Sampling` that the file names.

    `input_shape` is [N, C, H, W] by stage, `data` too; a stage that is not in them has none.
    """

    exp_dir: Path
    out_dir: Path
    opset: int
    dynamic_axes: bool
    input_shape: Mapping[str, tuple[int, int, int, int]]
    sampling: Mapping[str, Any]
    limits: Mapping[str, float]
    kernel_limits: Mapping[str, float]
    data: Mapping[str, StageData]


@dataclass(frozen=True)
class Stage:
    """One checkpoint: `detection`, `classification`, or `model` where the training had one stage."""

    name: str
    checkpoint: Path

    @property
    def link(self) -> str:
        """The name that leads to its newest proven export."""
        return "latest.onnx" if self.name == "model" else f"latest_{self.name}.onnx"


def read_config(path: Path, opset: str) -> ExportConfig:
    """Read the file; `opset` is the variable OPSET, "" where it is not set. Raises ConfigFault."""
    top = _Reader(_loaded(path), path)
    exp_dir = top.path("paths.exp_dir")
    if exp_dir is None:
        raise ConfigFault(f"{path}: paths.exp_dir is missing; expected the folder that holds checkpoints/")
    return ExportConfig(
        exp_dir=exp_dir,
        out_dir=top.path("export.out_dir") or exp_dir / "export",
        opset=_opset(opset) if opset else top.count("export.opset") or DEFAULT_OPSET,
        dynamic_axes=top.typed("export.dynamic_axes", bool, "true or false", default=True),
        input_shape=_input_shape(top),
        sampling=_sampling(top),
        limits=top.numbers("export.compare.limits"),
        kernel_limits=top.numbers("export.compare.kernel_limits"),
        data=_data(top),
    )


def find_stages(exp_dir: Path) -> list[Stage]:
    """The checkpoints that are there: S4 E-1's two, or either, else E-6's one. Raises ConfigFault for none."""
    folder = exp_dir / "checkpoints"
    found = [Stage(name, folder / f"{name}_best.pt") for name in STAGES if (folder / f"{name}_best.pt").is_file()]
    if not found and (folder / "best.pt").is_file():
        found = [Stage("model", folder / "best.pt")]
    if not found:
        raise ConfigFault(f"{folder}: no checkpoint; expected detection_best.pt and classification_best.pt, or best.pt")
    return found


def _loaded(path: Path) -> Content:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFault(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigFault(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ConfigFault(f"{path}: expected a mapping with paths and export, got {type(content).__name__}")
    return content


def _opset(text: str) -> int:
    if not text.isdecimal():
        raise ConfigFault(f"OPSET: expected a number such as {DEFAULT_OPSET}, got {text!r}")
    return int(text)


def _input_shape(top: _Reader) -> dict[str, tuple[int, int, int, int]]:
    key = "export.input_shape"
    value = top.get(key)
    by_stage = value if isinstance(value, Mapping) else dict.fromkeys((*STAGES, "model"), value)
    shapes = {}
    for stage, shape in by_stage.items():
        if shape is None:
            continue
        if not isinstance(shape, list) or len(shape) != 4 or not all(type(side) is int and side > 0 for side in shape):
            raise top.fault(key, "[N, C, H, W], four numbers of 1 or more", shape)
        shapes[str(stage)] = (shape[0], shape[1], shape[2], shape[3])
    return shapes


def _sampling(top: _Reader) -> dict[str, Any]:
    mode = top.get("export.compare.mode", "coverage")
    if mode not in MODES:
        raise top.fault("export.compare.mode", f"one of {', '.join(MODES)}", mode)
    if (by := top.get("export.compare.stratify_by", ["class"])) != ["class"]:
        raise top.fault("export.compare.stratify_by", "[class]", by)
    edges = top.typed("export.compare.hardness_bins", list, "a list of edges in 0..1", default=[])
    if not all(isinstance(edge, (int, float)) for edge in edges):
        raise top.fault("export.compare.hardness_bins", "a list of edges in 0..1", edges)
    if edges and mode in {"full", "auto"}:
        raise top.fault("export.compare.hardness_bins", "none with mode full or auto, which choose nothing", edges)
    given = {name: top.count(f"export.compare.{name}") for name in COUNTS}
    counts = {name: value for name, value in given.items() if value is not None}
    return {"mode": mode, "hardness_bins": tuple(float(edge) for edge in edges), **counts}


def _data(top: _Reader) -> dict[str, StageData]:
    found = {}
    for stage in STAGES:
        key = f"export.compare.data.{stage}"
        images = top.path(f"{key}.images", exists=True)
        if images is not None:
            found[stage] = StageData(images, top.path(f"{key}.annotations", exists=True))
    return found


class _Reader:
    """Looks values up by their dotted keys; a fault names file and key, what was expected and what is there."""

    def __init__(self, content: Content, path: Path) -> None:
        self._content = content
        self._path = path

    def fault(self, key: str, expected: str, received: object) -> ConfigFault:
        return ConfigFault(f"{self._path}: {key}: expected {expected}, got {received!r}")

    def get(self, key: str, default: Any = None) -> Any:
        found: Any = self._content
        for depth, part in enumerate(key.split(".")):
            if found is None:
                return default
            if not isinstance(found, Mapping):
                raise self.fault(".".join(key.split(".")[:depth]), "a mapping", found)
            found = found.get(part)
        return default if found is None else found

    def typed(self, key: str, kind: type[Value], words: str, *, default: Value) -> Value:
        value = self.get(key, default)
        if not isinstance(value, kind):
            raise self.fault(key, words, value)
        return value

    def path(self, key: str, *, exists: bool = False) -> Path | None:
        text = self.typed(key, str, "a path", default="")
        if not text:
            return None
        path = (self._path.parent / Path(text).expanduser()).resolve()
        if exists and not path.exists():
            raise self.fault(key, "a path that exists", str(path))
        return path

    def count(self, key: str) -> int | None:
        value = self.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise self.fault(key, "a whole number, 1 or more", value)
        return value

    def numbers(self, key: str) -> dict[str, float]:
        found = self.typed(key, dict, "a mapping of numbers", default={})
        return {str(name): self._number(f"{key}.{name}", value) for name, value in found.items()}

    def _number(self, key: str, value: object) -> float:
        """YAML 1.1 takes 1e-4, which has no point, for text."""
        try:
            number = float(value) if isinstance(value, (int, float, str)) else -1.0
        except ValueError:
            number = -1.0
        if not 0 <= number < inf or isinstance(value, bool):
            raise self.fault(key, "a number, 0 or more", value)
        return number
