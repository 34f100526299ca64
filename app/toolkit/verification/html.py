"""`report.html`: the comparison for a person, in one file that opens without a network.

The verdict comes first and in words; verdicts are told by a mark and a word beside their colour. Names come from users'
files, so everything is escaped, and the page forbids itself scripts and addresses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.toolkit.page import render_page
from app.toolkit.verification.advice import advice, reasons
from app.toolkit.verification.facts import ReportFacts, Side
from app.toolkit.verification.pictures import worst_pictures
from app.toolkit.verification.result import ClassificationFigures, Comparison, DetectionFigures, Figures, Gate
from app.toolkit.verification.template import PAGE

MARKS = {"passed": "✓", "failed": "✗", "undecided": "?"}
MAX_ROWS = 20
UNKNOWN = "-"

ANSWERS = {
    "kernel": ("Kernel parity", "The same tensors go into both: do the networks compute the same?"),
    "pipeline": (
        "Pipeline parity",
        "The same images go through each model's own preprocessing: do they answer the same as deployed?",
    ),
}

GATES = {
    "mse_mean": "mean squared error of the probabilities, mean over images",
    "mse_p99": "the same, 99th percentile over images",
    "top1_mismatch_rate": "share of images with another best class",
    "map_0_5": "|mAP of the candidate - mAP of the reference|, IoU 0.5",
    "map_0_5_0_95": "the same, IoU 0.5 to 0.95",
    "iou_delta_p95": "1 - IoU of matched boxes, 95th percentile",
    "detection_mismatch_rate": "share of detections without a partner (no labels, so no mAP)",
    "non_finite_values": "values that are NaN or infinite",
    "kernel_boxes": "largest difference of box coordinates, px of the network",
    "kernel_boxes_detectable": "the same, of boxes that can become detections",
    "kernel_scores": "largest difference of scores, 0 to 1",
    "kernel_logits_paired": "largest difference of class logits, each query's with its partner's",
    "kernel_pred_boxes_paired": "the same, of boxes in shares of the image",
}

FIGURES = {
    "images": "images",
    "mse_mean": "MSE, mean",
    "mse_p99": "MSE, 99th percentile",
    "mse_max": "MSE, largest",
    "top1_mismatch_count": "images with another best class",
    "top1_mismatch_rate": "their share",
    "mismatched_images": "images with a detection that has no partner",
    "mismatch_interval": "share of such images, interval",
    "reference_accuracy": "accuracy of the reference",
    "candidate_accuracy": "accuracy of the candidate",
    "reference_detections": "detections of the reference",
    "candidate_detections": "detections of the candidate",
    "matched": "matched",
    "agreement": "agreement (F1 of the matching)",
    "iou_delta_mean": "1 - IoU of matched boxes, mean",
    "iou_delta_p95": "1 - IoU of matched boxes, 95th percentile",
    "score_delta_p95": "difference of their scores, 95th percentile",
    "map50_reference": "mAP 0.5 of the reference",
    "map50_candidate": "mAP 0.5 of the candidate",
    "map50_95_reference": "mAP 0.5:0.95 of the reference",
    "map50_95_candidate": "mAP 0.5:0.95 of the candidate",
    "non_finite": "values that are NaN or infinite",
}


def report_html(facts: ReportFacts) -> str:
    """The page. Draws the images that differ most from their files, which must still be there to be shown."""
    alike = not facts.preprocessing_differences
    told = [facts.pipeline] if alike else sorted(facts.comparisons, key=lambda one: one.verdict == "passed")
    values = {
        "facts": facts,
        "marks": MARKS,
        "verdict": _verdict(facts),
        "reasons": reasons(facts.comparisons),
        "advice": advice(facts),
        "answers": [_answer(comparison) for comparison in facts.comparisons],
        "figures": list(_figures(facts.kernel.figures, facts.pipeline.figures)),
        "differences": [list(one.values()) for one in facts.preprocessing_differences],
        "pictures": worst_pictures(told, facts.names),
        "lists": list(_lists(told)),
        "models": list(_models(facts.reference, facts.candidate)),
        "sampling": list(_sampling(facts)),
        "unreadable": list(facts.unreadable.items())[:MAX_ROWS],
        "versions": list(facts.versions.items()),
        "seconds": list(facts.seconds.items()),
    }
    filters = {"shown": shown, "interval": _interval, "meaning": lambda name: GATES.get(name, "")}
    return render_page(PAGE, f"{facts.verdict}: {facts.candidate.path}", values, filters)


def shown(value: Any) -> str:
    """A value as a person reads it: four significant digits, lists without brackets, a dash for what is not known."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(entry)}" for key, entry in value.items()) or UNKNOWN
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value)) or UNKNOWN
    return str(value)


def _verdict(facts: ReportFacts) -> str:
    """The comparison in one sentence."""
    if facts.verdict == "passed":
        return "Passed: the candidate answers like the reference"
    if facts.verdict == "undecided":
        counts = (
            "which this request counts as a failure" if facts.strict else "which this request does not count against it"
        )
        return f"Undecided after {facts.sampled_images} images, {counts}"
    if facts.kernel.verdict == "failed":
        return "Failed: fed the same tensors, the networks answer differently"
    return "Failed: the networks agree, but not with the preprocessing that each is deployed with"


def _answer(comparison: Comparison) -> dict[str, Any]:
    title, meaning = ANSWERS[comparison.name]
    return {"title": title, "meaning": meaning, "comparison": comparison}


def _interval(gate: Gate) -> str:
    if gate.low is None or gate.high is None:
        return UNKNOWN
    confidence = f" ({100 * gate.confidence:g} %)" if gate.confidence is not None else ""
    return f"{shown(gate.low)} to {shown(gate.high)}{confidence}"


def _figures(kernel: Figures, pipeline: Figures) -> Iterator[tuple[str, Any, Any]]:
    first, second = kernel.as_dict(), pipeline.as_dict()
    for key, words in FIGURES.items():
        if first.get(key) is not None or second.get(key) is not None:
            yield words, first.get(key), second.get(key)
    for name in first.get("outputs", {}):
        yield f"{name}, largest differences", first["outputs"][name], second.get("outputs", {}).get(name)


def _lists(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, list[list[Any]], list[str]]]:
    """(heading, rows, column headings) of what is listed image by image or class by class."""
    for comparison in comparisons:
        figures = comparison.figures
        if not isinstance(figures, (ClassificationFigures, DetectionFigures)):
            continue
        suffix = f", {comparison.name} parity" if len(comparisons) > 1 else ""
        yield f"Classes that disagree most{suffix}", *_table(figures.worst_classes)
        yield f"Borderline samples{suffix}", *_table(figures.borderline)


def _table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[list[Any]], list[str]]:
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    return [[entry.get(key) for key in keys] for entry in entries[:MAX_ROWS]], [key.replace("_", " ") for key in keys]


def _models(reference: Side, candidate: Side) -> Iterator[tuple[str, Any, Any]]:
    first, second = reference.as_dict(), candidate.as_dict()
    for key in first:
        if first[key] not in (None, (), {}) or second[key] not in (None, (), {}):
            yield key.replace("_", " "), first[key], second[key]


def _sampling(facts: ReportFacts) -> Iterator[tuple[str, Any]]:
    sampling = facts.sampling
    yield "mode", sampling.mode
    yield "policy", facts.policy
    yield "images chosen", facts.chosen_images
    yield "images compared", facts.sampled_images
    yield "classes among them", facts.sampled_classes
    if facts.decided_after is not None:
        yield "decided after", f"{facts.decided_after} images"
    if sampling.mode == "coverage":
        yield "images of each class", sampling.per_class_k
        yield "classes, at least", sampling.min_classes
    if sampling.mode in {"coverage", "auto"}:
        yield "images, at most", sampling.max_total
    if sampling.hardness_bins:
        yield "hardness bins", sampling.hardness_bins
    yield "confidence", sampling.confidence
    yield "seed", sampling.seed
    yield "input size, H x W", " x ".join(map(str, facts.input_size))
    if facts.nms is not None:
        yield (
            "non-maximum suppression",
            f"confidence {facts.nms.conf:g}, IoU {facts.nms.iou:g}, {facts.nms.max_det} boxes",
        )
