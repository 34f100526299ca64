"""`export_report.json`: S4 E-3's keys in its order, each with a true value or null, and ours under `extra`.

S4 exports and compares in one step, so its report speaks of a checkpoint and its ONNX file. Here any two models are
compared: `ckpt_path` is the reference, `onnx_path` the candidate, and what describes a file (`input_shape`, `opset`,
`dynamic_axes`, `providers`) is the candidate's. `backbone` and `params_million` are the reference's: a runtime's graph
has its batch norms folded, an engine tells neither. The figures of `compare` are kernel parity's, S4's own definition
(the same tensors into both, one NMS); `failed` and `failure_reason` are of both answers. `sample_count` is how many
images were chosen, `sampled_images` how many of those were read and compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timezone
from pathlib import Path
from typing import Any

import numpy as np

from app.toolkit.onnx_file import write_whole
from app.toolkit.verification.advice import advice, failure_text
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.html import report_html
from app.toolkit.verification.result import ClassificationFigures, DetectionFigures

REPORT_NAME = "export_report.json"
PAGE_NAME = "report.html"
UTC_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

MAX_LISTED = 50
"""Compared images, breaches of parity and unreadable images that are named one by one; all are counted."""


def write_reports(facts: ReportFacts, folder: Path) -> tuple[Path, Path]:
    """Write `export_report.json` and `report.html`, each whole or not at all; returns their paths."""
    report, page = folder / REPORT_NAME, folder / PAGE_NAME
    write_whole(report_json(facts).encode(), report)
    write_whole(report_html(facts).encode(), page)
    return report, page


def report_json(facts: ReportFacts) -> str:
    """The report's text: strict JSON."""
    return json.dumps(export_report(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def export_report(facts: ReportFacts) -> dict[str, Any]:
    """The report as JSON's values. NaN and infinities become null, and `extra.non_finite` names where they were."""
    reference, candidate = facts.reference, facts.candidate
    report = {
        "backbone": reference.backbone or candidate.backbone,
        "num_classes": reference.num_classes,
        "ckpt_path": reference.path,
        "onnx_path": candidate.path,
        "exported_at_utc": facts.exported_at and facts.exported_at.astimezone(timezone.utc).strftime(UTC_FORMAT),
        "git_sha": facts.git_sha,
        "input_shape": candidate.input_shape,
        "opset": candidate.opset,
        "dynamic_axes": candidate.dynamic_axes,
        "params_million": None if reference.params is None else reference.params / 1e6,
        "providers": candidate.providers or None,
        "postprocess": _postprocess(facts),
        "compare": _compare(facts),
        "extra": _extra(facts),
    }
    non_finite: list[str] = []
    plain: dict[str, Any] = _plain(report, "", non_finite)
    plain["extra"]["non_finite"] = non_finite
    return plain


def _postprocess(facts: ReportFacts) -> dict[str, Any]:
    nms = facts.nms
    return {
        "nms": {
            "conf_threshold": nms and nms.conf,
            "iou_threshold": nms and nms.iou,
            "max_detections": nms and nms.max_det,
            "class_agnostic": nms and False,  # `non_maximum_suppression` moves the classes apart
        },
        "applied_in": nms and "python_common",
    }


def _compare(facts: ReportFacts) -> dict[str, Any]:
    sampling = facts.sampling
    by_class = sampling.mode == "coverage"
    return {
        "mode": sampling.mode,
        "sample_policy": facts.policy,
        "sample_count": facts.chosen_images,
        "per_class_k": sampling.per_class_k if by_class else None,
        "min_classes": sampling.min_classes if by_class else None,
        "max_total": sampling.max_total if by_class or sampling.mode == "auto" else None,
        "sampled_classes": facts.sampled_classes,
        "sampled_images": facts.sampled_images,
        **_figures(facts),
    }


def _figures(facts: ReportFacts) -> dict[str, Any]:
    figures = facts.kernel.figures
    classes = figures if isinstance(figures, ClassificationFigures) else None
    boxes = figures if isinstance(figures, DetectionFigures) else None
    return {
        "mse_mean": classes and classes.mse_mean,
        "mse_p99": classes and classes.mse_p99,
        "top1_match_rate": classes and 1 - classes.top1_mismatch_rate,
        "top1_mismatch_count": classes and classes.top1_mismatch_count,
        "failed": facts.failed,
        "failure_reason": failure_text(facts.comparisons) if facts.failed else None,
        "deltas": {"map_0_5": boxes and boxes.map50_delta, "map_0_5_0_95": boxes and boxes.map50_95_delta},
        "notes": "; ".join(facts.notes),
    }


def _extra(facts: ReportFacts) -> dict[str, Any]:
    return {
        "verdict": facts.verdict,
        "undecided": facts.verdict == "undecided",
        "strict": facts.strict,
        "decided_after": facts.decided_after,
        "input_size": facts.input_size,
        "limits": asdict(facts.limits),
        "sampling": asdict(facts.sampling),
        "kernel": facts.kernel.as_dict(),
        "pipeline": facts.pipeline.as_dict(),
        "kernel_parity": _parity(facts.kernel_parity),
        "reference": facts.reference.as_dict(),
        "candidate": facts.candidate.as_dict(),
        "preprocessing_differences": facts.preprocessing_differences,
        "advice": advice(facts),
        "images": [one["name"] for one in facts.kernel_parity["inputs"]][:MAX_LISTED],
        "unreadable": {"count": len(facts.unreadable), "images": dict(list(facts.unreadable.items())[:MAX_LISTED])},
        "seconds": facts.seconds,
        "versions": facts.versions,
    }


def _parity(parity: Mapping[str, Any]) -> dict[str, Any]:
    """Without a row for each of up to thousands of images."""
    kept = {key: value for key, value in parity.items() if key not in {"inputs", "failures"}}
    failures = parity.get("failures", [])
    return {**kept, "failure_count": len(failures), "failures": failures[:MAX_LISTED]}


def _plain(value: Any, where: str, non_finite: list[str]) -> Any:
    """Mappings, lists and JSON's own values. NumPy's become Python's; places of NaN and infinity are noted."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        inside = f"{where}." if where else ""
        return {str(key): _plain(entry, f"{inside}{key}", non_finite) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{where}[{index}]", non_finite) for index, entry in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        non_finite.append(where)
        return None
    return value
