"""Comparisons made by hand, to be reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from app.toolkit.detections import Detections
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.verification.facts import ReportFacts, Side
from app.toolkit.verification.request import S4_NMS, Limits, Sampling
from app.toolkit.verification.result import ClassificationFigures, Comparison, DetectionFigures, Gate, Verdict, Worst

NAMES = {0: "round", 1: "oval", 2: "capsule"}
KOREA = timezone(timedelta(hours=9))

REFERENCE = Side(
    path="checkpoints/detection_best.pt",
    sha256="a" * 64,
    size_bytes=6_200_000,
    format="pt",
    dtype="fp32",
    family="ultralytics",
    task="detect",
    runtime="torch",
    preprocessing=Preprocessing().as_dict(),
    input_shape=(1, 3, 640, 640),
    input_axes=("batch", 3, "height", "width"),
    backbone="YOLOv8n",
    num_classes=12,
    params=3_013_188,
)
CANDIDATE = replace(
    REFERENCE,
    path="export/detection-20261121-120000-ab12cd3.onnx",
    format="onnx",
    runtime="onnxruntime",
    backbone=None,
    params=3_010_718,
    opset=17,
    dynamic_axes=True,
    providers=("CPUExecutionProvider",),
)
BOXES = DetectionFigures(
    images=8,
    reference_detections=40,
    candidate_detections=39,
    matched=39,
    agreement=0.987,
    mismatch_rate=0.013,
    mismatched_images=1,
    mismatch_interval=(0.01, 0.4),
    iou_delta_p95=0.002,
    iou_delta_mean=0.001,
    score_delta_p95=0.003,
    worst_classes=({"class": 1, "name": "oval", "mismatches": 1},),
    borderline=({"name": "a.jpg", "score_reference": 0.31, "score_candidate": None},),
    non_finite=0,
    map50_reference=0.99,
    map50_candidate=0.985,
    map50_95_reference=0.9,
    map50_95_candidate=0.902,
)
CLASSES = ClassificationFigures(
    images=100,
    mse_mean=7.4e-7,
    mse_p99=3.2e-6,
    mse_max=4e-6,
    top1_mismatch_count=1,
    top1_mismatch_rate=0.01,
    mismatch_interval=(0.001, 0.06),
    worst_classes=(),
    borderline=(),
    non_finite=0,
)


def gate(name: str, verdict: Verdict = "passed", **changes: Any) -> Gate:
    """A limit of 0.01 that is kept, unless said otherwise."""
    measured = 0.02 if verdict == "failed" else 0.002
    return replace(Gate(name, 0.01, measured, verdict), **changes)


def facts_of_detector(
    kernel: Sequence[Gate] = (gate("map_0_5"),), pipeline: Sequence[Gate] | None = None, **changes: Any
) -> ReportFacts:
    """A detector's comparison; without `pipeline` that answer is the kernel's."""
    first = Comparison("kernel", BOXES, tuple(kernel))
    facts = ReportFacts(
        reference=REFERENCE,
        candidate=CANDIDATE,
        kernel=first,
        pipeline=replace(first, name="pipeline", gates=tuple(kernel if pipeline is None else pipeline)),
        kernel_parity={"passed": True, "outputs": {}, "inputs": [{"name": "a.jpg"}], "failures": []},
        sampling=Sampling(),
        policy="stratified",
        chosen_images=9,
        sampled_images=8,
        sampled_classes=12,
        limits=Limits(),
        names=NAMES,
        input_size=(640, 640),
        git_sha="ab12cd3",
        exported_at=datetime(2026, 11, 21, 21, 0, 5, tzinfo=KOREA),
        nms=S4_NMS,
        notes=("stratified by class", "min_classes 1000 is capped at 12, the data's"),
        unreadable={"broken.jpg": "cut short"},
        seconds={"load": 1.25},
        versions={"onnxruntime": "1.23"},
    )
    return replace(facts, **changes)


def facts_of_classifier(figures: ClassificationFigures = CLASSES, **changes: Any) -> ReportFacts:
    """A classifier's comparison, both answers the same."""
    first = Comparison("kernel", figures, (gate("mse_mean", limit=1e-4, measured=7.4e-7),))
    facts = facts_of_detector(kernel=first.gates, nms=None)
    return replace(facts, **{"kernel": first, "pipeline": replace(first, name="pipeline"), **changes})


def detections(*found: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    """(corners in px, score, class) each."""
    return Detections(
        np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float32),
        np.array([index for _, _, index in found], dtype=np.int64),
    )


def worst_of(path: Path, reference: Any, candidate: Any, name: str = "a.png") -> Worst:
    """An image on which the two differ by 0.5."""
    return Worst(path, name, 0.5, reference, candidate)
