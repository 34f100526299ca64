"""`export_report.json` of an export that ended before anything was compared: S4 E-3's keys, null but for the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.toolkit.errors import ToolkitError
from app.two_stage.config import ExportConfig, Stage


def report_of_error(
    config: ExportConfig, stage: Stage, error: ToolkitError, onnx: Path | None, git_sha: str
) -> dict[str, Any]:
    """The report as JSON's values; `extra.error` has what was expected, what came and what to try."""
    return {
        "backbone": None,
        "num_classes": None,
        "ckpt_path": str(stage.checkpoint),
        "onnx_path": onnx and str(onnx),
        "exported_at_utc": None,
        "git_sha": git_sha,
        "input_shape": None,
        "opset": config.opset,
        "dynamic_axes": config.dynamic_axes,
        "params_million": None,
        "providers": None,
        "postprocess": {
            "nms": dict.fromkeys(("conf_threshold", "iou_threshold", "max_detections", "class_agnostic")),
            "applied_in": None,
        },
        "compare": _compare(config, error),
        "extra": {"verdict": "failed", "error": error.as_dict()},
    }


def _compare(config: ExportConfig, error: ToolkitError) -> dict[str, Any]:
    sampling = config.sampling
    return {
        "mode": sampling["mode"],
        "sample_policy": None,
        "sample_count": None,
        **{name: sampling.get(name) for name in ("per_class_k", "min_classes", "max_total")},
        "sampled_classes": None,
        "sampled_images": 0,
        "mse_mean": None,
        "mse_p99": None,
        "top1_match_rate": None,
        "top1_mismatch_count": None,
        "failed": True,
        "failure_reason": str(error),
        "deltas": {"map_0_5": None, "map_0_5_0_95": None},
        "notes": "",
    }
