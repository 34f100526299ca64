"""`export_report.json` against S4's E-3, and the words for what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.toolkit.preprocessing import Preprocessing
from app.toolkit.verification.advice import advice, failure_text, parameter_of, reasons
from app.toolkit.verification.report import MAX_LISTED, export_report, report_json, write_reports
from app.toolkit.verification.request import Limits, Sampling
from app.toolkit.verification.result import Comparison, RawFigures
from tests.toolkit.told import BOXES, CANDIDATE, CLASSES, facts_of_classifier, facts_of_detector, gate

# S4 E-3, letter by letter, but for `git_sha`, which it gives as two alternatives.
E3 = """{
"backbone": "efficientnet_v2_s",
"num_classes": 5000,
"ckpt_path": "/mnt/data/exp/exp01/checkpoints/best.pt",
"onnx_path": "/mnt/data/exp/exp01/export/model-20250810-143012-ab12cd3.onnx",
"exported_at_utc": "2025-08-10T14:30:12Z",
"git_sha": "ab12cd3",
"input_shape": [1,3,224,224],
"opset": 17,
"dynamic_axes": true,
"params_million": 21.32,
"providers": ["CUDAExecutionProvider","CPUExecutionProvider"],
"postprocess": {
  "nms": {
    "conf_threshold": 0.3,
    "iou_threshold": 0.5,
    "max_detections": 100,
    "class_agnostic": false
  },
  "applied_in": "python_common"
},
"compare": {
  "mode": "coverage",
  "sample_policy": "stratified",
  "sample_count": 1200,
  "per_class_k": 1,
  "min_classes": 1000,
  "max_total": 5000,
  "sampled_classes": 1187,
  "sampled_images": 1200,
  "mse_mean": 7.4e-7,
  "mse_p99": 3.2e-6,
  "top1_match_rate": 1.0,
  "top1_mismatch_count": 0,
  "failed": false,
  "failure_reason": null,
  "deltas": {"map_0_5": 0.0, "map_0_5_0_95": 0.0},
  "notes": "stratified by class; hardness bins enabled"
}
}"""


def keys_of(value: Any, where: str = "") -> Iterator[str]:
    """Every key with those above it, in order."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f"{where}{key}"
            yield from keys_of(entry, f"{where}{key}.")


def report_of(facts: Any) -> Any:
    return json.loads(report_json(facts))


@pytest.mark.parametrize("facts", [facts_of_detector(), facts_of_classifier()], ids=["detector", "classifier"])
def test_it_has_every_key_of_s4_in_its_order_and_ours_under_extra(facts: Any) -> None:
    report = report_of(facts)
    extra = report.pop("extra")
    assert list(keys_of(report)) == list(keys_of(json.loads(E3)))
    assert extra["verdict"] == "passed"


def test_what_both_give_has_the_type_that_s4_shows() -> None:
    theirs, ours = json.loads(E3), report_of(facts_of_detector())
    for key, value in theirs.items():
        assert type(ours[key]) is type(value), key
    for key in ("sampled_classes", "failed", "notes", "deltas", "mode", "per_class_k"):
        assert type(ours["compare"][key]) is type(theirs["compare"][key]), key


def test_a_detectors_values_are_the_facts() -> None:
    report = report_of(facts_of_detector())
    assert report["backbone"] == "YOLOv8n" and report["num_classes"] == 12
    assert report["ckpt_path"] == "checkpoints/detection_best.pt"
    assert report["onnx_path"] == "export/detection-20261121-120000-ab12cd3.onnx"
    assert report["exported_at_utc"] == "2026-11-21T12:00:05Z"
    assert report["input_shape"] == [1, 3, 640, 640]
    assert report["extra"]["candidate"]["input_axes"] == ["batch", 3, "height", "width"]
    assert report["params_million"] == 3.013188
    assert report["providers"] == ["CPUExecutionProvider"]
    assert report["postprocess"]["nms"] == {
        "conf_threshold": 0.3,
        "iou_threshold": 0.5,
        "max_detections": 100,
        "class_agnostic": False,
    }
    compare = report["compare"]
    assert compare["deltas"] == {"map_0_5": pytest.approx(-0.005), "map_0_5_0_95": pytest.approx(0.002)}
    assert (compare["sample_count"], compare["sampled_images"]) == (9, 8)
    assert compare["notes"] == "stratified by class; min_classes 1000 is capped at 12, the data's"
    assert [compare[key] for key in ("mse_mean", "mse_p99", "top1_match_rate", "top1_mismatch_count")] == [None] * 4


def test_a_classifier_has_no_boxes() -> None:
    report = report_of(facts_of_classifier())
    assert set(report["postprocess"]["nms"].values()) == {None} and report["postprocess"]["applied_in"] is None
    compare = report["compare"]
    assert compare["deltas"] == {"map_0_5": None, "map_0_5_0_95": None}
    assert (compare["mse_mean"], compare["mse_p99"]) == (7.4e-7, 3.2e-6)
    assert (compare["top1_match_rate"], compare["top1_mismatch_count"]) == (0.99, 1)


def test_a_detector_without_labels_has_no_deltas() -> None:
    unlabelled = replace(BOXES, map50_candidate=None, map50_95_candidate=None)
    facts = facts_of_detector(kernel=())
    facts = replace(facts, kernel=replace(facts.kernel, figures=unlabelled))
    assert report_of(facts)["compare"]["deltas"] == {"map_0_5": None, "map_0_5_0_95": None}


def test_an_engine_says_neither_opset_nor_providers() -> None:
    engine = replace(CANDIDATE, format="engine", runtime="tensorrt", opset=None, dynamic_axes=None, providers=())
    report = report_of(facts_of_detector(candidate=engine, exported_at=None))
    assert [report[key] for key in ("opset", "dynamic_axes", "providers", "exported_at_utc")] == [None] * 4


@pytest.mark.parametrize(
    ("mode", "given"),
    [("smoke", []), ("full", []), ("auto", ["max_total"]), ("coverage", ["per_class_k", "min_classes", "max_total"])],
)
def test_what_a_mode_does_not_use_is_null(mode: Any, given: list[str]) -> None:
    compare = report_of(facts_of_detector(sampling=Sampling(mode=mode)))["compare"]
    assert [key for key in ("per_class_k", "min_classes", "max_total") if compare[key] is not None] == given


def test_it_is_strict_json_and_says_where_a_nan_was() -> None:
    figures = replace(CLASSES, mse_mean=float("nan"), mse_p99=float("inf"), non_finite=7)
    text = report_json(facts_of_classifier(figures))
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["compare"]["mse_mean"] is None
    assert report["extra"]["non_finite"] == [
        "compare.mse_mean",
        "compare.mse_p99",
        "extra.kernel.figures.mse_mean",
        "extra.kernel.figures.mse_p99",
        "extra.pipeline.figures.mse_mean",
        "extra.pipeline.figures.mse_p99",
    ]


def test_numbers_of_numpy_are_numbers() -> None:
    figures = replace(CLASSES, mse_mean=np.float32(0.25), worst_classes=({"class": np.int64(3)},))
    report = report_of(facts_of_classifier(figures))
    assert report["compare"]["mse_mean"] == 0.25
    assert report["extra"]["kernel"]["figures"]["worst_classes"] == [{"class": 3}]


def test_thousands_of_images_do_not_swell_it() -> None:
    failures = [f"image {index}" for index in range(5000)]
    parity = {"passed": False, "inputs": [{"name": "a.jpg"}] * 5000, "failures": failures}
    found = report_of(facts_of_detector(kernel_parity=parity))["extra"]["kernel_parity"]
    assert "inputs" not in found
    assert (found["failure_count"], len(found["failures"])) == (5000, MAX_LISTED)


def test_both_reports_are_written_whole(tmp_path: Path) -> None:
    report, page = write_reports(facts_of_detector(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export_report.json", "report.html"]
    assert json.loads(report.read_text()) == export_report(facts_of_detector())
    assert page.read_text().startswith("<!DOCTYPE html>")


# -- words --------------------------------------------------------------------------------------------------------
BGR = replace(CANDIDATE, preprocessing=Preprocessing(channel_order="BGR", mean=(0.5, 0.5, 0.5)).as_dict())
GOOD, BAD = gate("iou_delta_p95"), gate("iou_delta_p95", "failed")


def test_a_failure_says_of_which_answer_and_by_how_much() -> None:
    facts = facts_of_detector(kernel=[GOOD], pipeline=[BAD])
    assert failure_text(facts.comparisons) == "pipeline: iou_delta_p95 is 0.02, limit 0.01"
    compare = report_of(facts)["compare"]
    assert (compare["failed"], compare["failure_reason"]) == (True, "pipeline: iou_delta_p95 is 0.02, limit 0.01")


def test_what_both_answers_break_is_said_once() -> None:
    facts = facts_of_detector(kernel=[BAD, gate("mse_mean", "failed", measured=None)])
    assert reasons(facts.comparisons) == [
        "kernel and pipeline: iou_delta_p95 is 0.02, limit 0.01",
        "kernel and pipeline: mse_mean could not be measured: values are NaN or infinite",
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_undecided_fails_where_the_request_is_strict(strict: bool) -> None:
    facts = facts_of_detector(kernel=[gate("map_0_5", "undecided", leans="passed")], strict=strict)
    report = report_of(facts)
    assert report["compare"]["failed"] is strict
    assert (report["compare"]["failure_reason"] is not None) is strict
    assert report["extra"]["undecided"] is True
    assert any("max_total" in line for line in report["extra"]["advice"])
    assert failure_text(facts.comparisons).endswith("undecided, would have passed")


def test_a_passed_comparison_needs_no_advice() -> None:
    assert advice(facts_of_detector()) == []


def test_equal_networks_and_unequal_pipelines_point_at_the_preprocessing() -> None:
    lines = advice(facts_of_detector(kernel=[GOOD], pipeline=[BAD], candidate=BGR))
    assert "the networks agree and the preprocessing does not" in lines[0]
    assert lines[1].startswith("channel_order: RGB in the reference, BGR in the candidate")
    assert lines[2].startswith("mean: [0.0, 0.0, 0.0] in the reference, [0.5, 0.5, 0.5] in the candidate")
    assert not any("batch-norm" in line for line in lines)


def test_unequal_networks_point_at_the_graph_first() -> None:
    lines = advice(facts_of_detector(kernel=[BAD], candidate=BGR))
    text = "\n".join(lines)
    assert "the networks differ" in lines[0]
    for cause in ("opset 17", "eval().float()", "batch-norm", "dynamic_axes"):
        assert cause in text
    assert lines.index(next(line for line in lines if line.startswith("channel_order"))) > 5


def test_networks_that_differ_only_on_the_same_tensors_may_hold_the_normalisation() -> None:
    lines = advice(facts_of_detector(kernel=[BAD], pipeline=[GOOD], candidate=BGR))
    assert any("hold the normalisation inside" in line for line in lines)


def test_fp16_that_overflows_is_told_so() -> None:
    comparison = Comparison(
        "kernel", RawFigures(3, {}, non_finite=9), (gate("non_finite_values", "failed", limit=0.0),)
    )
    facts = facts_of_detector(candidate=replace(CANDIDATE, dtype="fp16"))
    lines = advice(replace(facts, kernel=comparison))
    assert "65504" in lines[1]
    assert not any("raise" in line for line in lines)


def test_a_near_miss_names_the_parameter_and_a_looser_limit() -> None:
    near = gate("mse_mean", "failed", limit=1e-6, measured=9.4e-6)
    lines = advice(facts_of_detector(kernel=[near]))
    assert "if the task allows it, raise mse_mean from 1e-06 to e.g. 1e-05 (mse_mean is 9.4e-06)" in lines


def test_what_is_far_off_is_called_a_fault() -> None:
    lines = advice(facts_of_detector(kernel=[gate("map_0_5", "failed", measured=0.4)]))
    assert "map_0_5 is over 10 times its limit: that is a fault, not a tolerance" in lines


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("mse_p99", "mse_p99"),
        ("top1_mismatch_rate", "top1_mismatch_rate"),
        ("map_0_5_0_95", "map_delta"),
        ("iou_delta_p95", "iou_delta_p95"),
        ("detection_mismatch_rate", "detection_mismatch_rate"),
        ("kernel_boxes", "kernel_limits"),
        ("non_finite_values", None),
    ],
)
def test_a_gate_knows_its_parameter(name: str, parameter: str | None) -> None:
    assert parameter_of(name) == parameter
    assert parameter in {None, "kernel_limits", *vars(Limits())}


def test_a_provider_that_refused_is_named() -> None:
    refused = replace(CANDIDATE, providers_refused={"CUDAExecutionProvider": "no device"})
    lines = advice(facts_of_detector(kernel=[BAD], candidate=refused))
    assert "CUDAExecutionProvider refused (no device), CPUExecutionProvider ran instead" in lines[-1]
