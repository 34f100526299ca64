"""`export_report.json` key by key against S4's E-3, each value found once more in the files, by other means.

Ultralytics prepares the detector's images and suppresses its boxes, pycocotools scores them; timm prepares the
classifier's. The one thing taken from the comparison itself is which images it drew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timm.data.transforms_factory import create_transform
from torch import nn
from ultralytics.data.augment import LetterBox
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from app.toolkit.detections import NmsSettings
from app.toolkit.pipeline import Precision, export_and_prove
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.report import write_reports
from app.toolkit.verification.request import Sampling, VerifyRequest
from tests.toolkit.scenes import make_scenes

Array = npt.NDArray[Any]
Network = Callable[[torch.Tensor], torch.Tensor]

# Nothing here is a default, so that no default can pass for a value.
DETECTOR_SIZE, CLASSIFIER_SIZE = (416, 512), (128, 128)
NMS = NmsSettings(conf=0.4, iou=0.6, max_det=50)
COVERAGE = Sampling(mode="coverage", per_class_k=2, min_classes=20, max_total=9, seed=3)
EXPORTED = "20261121-093000"


@dataclass(frozen=True)
class Compared:
    """A report that was written, the two files, and the images that were compared, by their names in the folder."""

    report: dict[str, Any]
    source: Path
    candidate: Path
    data: Path
    images: tuple[str, ...]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes with COCO annotations and eight crops of each pill, one of them no picture."""
    folder = make_scenes(tmp_path_factory.mktemp("drawn"), images=10, seed=31_008)
    sorted((folder / "crops").rglob("*.png"))[40].write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def detection(pills: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(pills, tmp_path_factory.mktemp("detection") / f"detection-{EXPORTED}-ab12cd3.onnx", "fp32")


@pytest.fixture(scope="module")
def classification(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("classification") / f"classification-{EXPORTED}-ab12cd3.onnx"
    return exported(classifier, target, "fp16", CLASSIFIER_SIZE)


def exported(source: Path, target: Path, precision: Precision, size: tuple[int, int] | None = None) -> Path:
    return export_and_prove(source, target, precision=precision, dynamic=True, input_size=size).path


def damaged(good: Path, folder: Path, *, noise: float) -> Path:
    """The export with noise on every weight, by a name that knows no commit."""
    model = onnx.load(good)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            moved = values * (1 + noise * rng.standard_normal(values.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(values.dtype), tensor.name))
    target = folder / good.name.replace("ab12cd3", "nogit")
    onnx.save(model, target)
    return target


def compared(request: VerifyRequest, data: Path) -> Compared:
    facts = verify(request)
    images = tuple(one["name"] for one in facts.kernel_parity["inputs"])
    report = json.loads(write_reports(facts, request.folder)[0].read_text())
    assert list(report)[-1] == "extra"
    del report["extra"]
    return Compared(report, request.reference, request.candidate, data, images)


def compared_detectors(pills: Path, candidate: Path, drawn: Path, folder: Path) -> Compared:
    request = VerifyRequest(
        reference=pills,
        candidate=candidate,
        images=drawn / "images",
        folder=folder,
        annotations=drawn / "instances.json",
        sampling=COVERAGE,
        nms=NMS,
        input_size=DETECTOR_SIZE,
        limits={"map_delta": 0.004},
        threads=1,
    )
    return compared(request, drawn / "images")


def compared_classifiers(classifier: Path, candidate: Path, drawn: Path, folder: Path) -> Compared:
    request = VerifyRequest(
        reference=classifier,
        candidate=candidate,
        images=drawn / "crops",
        folder=folder,
        sampling=Sampling(mode="full"),
        limits={"mse_mean": 1e-5},
        threads=1,
    )
    return compared(request, drawn / "crops")


def test_a_detectors_report(pills: Path, detection: Path, drawn: Path, tmp_path: Path) -> None:
    check_detectors_report(compared_detectors(pills, detection, drawn, tmp_path), git_sha="ab12cd3", failed=False)


def test_the_report_of_a_detector_that_is_not_the_same(
    pills: Path, detection: Path, drawn: Path, tmp_path: Path
) -> None:
    candidate = damaged(detection, tmp_path, noise=0.1)
    found = compared_detectors(pills, candidate, drawn, tmp_path)
    check_detectors_report(found, git_sha="nogit", failed=True)
    assert min(found.report["compare"]["deltas"].values()) < -0.02


def test_a_classifiers_report(classifier: Path, classification: Path, drawn: Path, tmp_path: Path) -> None:
    found = compared_classifiers(classifier, classification, drawn, tmp_path)
    check_classifiers_report(found, git_sha="ab12cd3", failed=False)
    assert 1e-9 < found.report["compare"]["mse_mean"] < 1e-5


def test_the_report_of_a_classifier_that_is_not_the_same(
    classifier: Path, classification: Path, drawn: Path, tmp_path: Path
) -> None:
    candidate = damaged(classification, tmp_path, noise=0.2)
    found = compared_classifiers(classifier, candidate, drawn, tmp_path)
    check_classifiers_report(found, git_sha="nogit", failed=True)
    assert found.report["compare"]["top1_mismatch_count"] > 3


# -- what the report should say -----------------------------------------------------------------------------------
def check_detectors_report(found: Compared, *, git_sha: str, failed: bool) -> None:
    checkpoint = torch.load(found.source, weights_only=False)["model"]
    classes_of = classes_by_image(found.data.parent / "instances.json")
    shown = set().union(*classes_of.values())
    have, lacking = len(shown), [name for index, name in checkpoint.names.items() if index not in shown]
    check_stratified(found.images, classes_of)
    deltas = map_deltas(found, checkpoint.float().eval())
    reason = found.report["compare"].pop("failure_reason")
    expected = {
        "backbone": Path(checkpoint.yaml["yaml_file"]).stem.replace("yolo", "YOLO"),
        "num_classes": checkpoint.nc,
        **of_files(found, checkpoint, git_sha, DETECTOR_SIZE),
        "postprocess": {
            "nms": {"conf_threshold": 0.4, "iou_threshold": 0.6, "max_detections": 50, "class_agnostic": False},
            "applied_in": "python_common",
        },
        "compare": {
            "mode": "coverage",
            "sample_policy": "stratified",
            "sample_count": len(found.images),
            "per_class_k": 2,
            "min_classes": 20,
            "max_total": 9,
            "sampled_classes": len(set().union(*(classes_of[name] for name in found.images))),
            "sampled_images": len(found.images),
            "mse_mean": None,
            "mse_p99": None,
            "top1_match_rate": None,
            "top1_mismatch_count": None,
            "failed": failed,
            "deltas": {name: pytest.approx(delta, abs=1e-5) for name, delta in deltas.items()},
            "notes": f"no box of {len(lacking)} of the model's {checkpoint.nc} classes is labelled, so no mAP tells of "
            f"them: {', '.join(lacking)}; min_classes 20 capped at {have}: the data has {have} classes",
        },
    }
    assert found.report == expected
    assert list(keys_of(found.report)) == list(keys_of(expected))
    told = {name: abs(delta) for name, delta in deltas.items() if abs(delta) > 0.004}
    check_reason(reason, told, limit=0.004, failed=failed)


def check_classifiers_report(found: Compared, *, git_sha: str, failed: bool) -> None:
    checkpoint = torch.load(found.source)
    network = timm.create_model(checkpoint["backbone"], num_classes=checkpoint["num_classes"])
    network.load_state_dict(checkpoint["state_dict"])
    files = sorted(found.data.rglob("*.png"))
    readable = [file for file in files if file.read_bytes().startswith(b"\x89PNG")]
    assert found.images == tuple(file.relative_to(found.data).as_posix() for file in readable)
    mses, mismatches = classification_differences(found, network.eval(), readable)
    reason = found.report["compare"].pop("failure_reason")
    expected = {
        "backbone": checkpoint["backbone"],
        "num_classes": checkpoint["num_classes"],
        **of_files(found, network, git_sha, CLASSIFIER_SIZE),
        "postprocess": {
            "nms": {"conf_threshold": None, "iou_threshold": None, "max_detections": None, "class_agnostic": None},
            "applied_in": None,
        },
        "compare": {
            "mode": "full",
            "sample_policy": "all",
            "sample_count": len(files),
            "per_class_k": None,
            "min_classes": None,
            "max_total": None,
            "sampled_classes": len({file.parent for file in files}),
            "sampled_images": len(files) - 1,
            "mse_mean": pytest.approx(np.mean(mses), rel=5e-3),
            "mse_p99": pytest.approx(np.percentile(mses, 99), rel=5e-3),
            "top1_match_rate": pytest.approx(1 - mismatches / len(readable)),
            "top1_mismatch_count": mismatches,
            "failed": failed,
            "deltas": {"map_0_5": None, "map_0_5_0_95": None},
            "notes": "",
        },
    }
    assert found.report == expected
    assert list(keys_of(found.report)) == list(keys_of(expected))
    check_reason(reason, {"mse_mean": float(np.mean(mses))}, limit=1e-5, failed=failed)


def of_files(found: Compared, network: nn.Module, git_sha: str, size: tuple[int, int]) -> dict[str, Any]:
    """The keys that both tasks fill from the two files."""
    model = onnx.load(found.candidate)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    (opset,) = [entry.version for entry in model.opset_import if entry.domain == ""]
    date, time = EXPORTED.split("-")
    return {
        "ckpt_path": str(found.source.resolve()),
        "onnx_path": str(found.candidate.resolve()),
        "exported_at_utc": f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}Z",
        "git_sha": git_sha,
        "input_shape": [1, 3, *size],
        "opset": opset,
        "dynamic_axes": "batch" in axes,
        "params_million": pytest.approx(sum(one.numel() for one in network.parameters()) / 1e6),
        "providers": session(found.candidate).get_providers(),
    }


def keys_of(value: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Every key with those above it, in order."""
    for key, entry in value.items():
        yield f"{where}{key}"
        if isinstance(entry, dict):
            yield from keys_of(entry, f"{where}{key}.")


def check_reason(reason: str | None, told: Mapping[str, float], *, limit: float, failed: bool) -> None:
    """A failure's reason names each figure that is over its limit, with both; without a failure there is none."""
    if not failed:
        assert reason is None
        return
    found = re.findall(r"(\w+) is (\S+), limit ([^\s;]+)", reason or "")
    said = {name: (float(value), float(most)) for name, value, most in found}
    assert told
    for name, value in told.items():
        assert said[name][0] == pytest.approx(value, rel=5e-3)
        assert said[name][1] == limit


# -- the same once more, by other means ---------------------------------------------------------------------------
def classes_by_image(annotations: Path) -> dict[str, set[int]]:
    content = json.loads(annotations.read_text())
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    found: dict[str, set[int]] = {name: set() for name in names.values()}
    for one in content["annotations"]:
        found[names[one["image_id"]]].add(one["category_id"])
    return found


def check_stratified(images: Sequence[str], classes_of: Mapping[str, set[int]]) -> None:
    """Every class is shown by two images, or by as many as there are; no more images than were allowed."""
    available = Counter(index for classes in classes_of.values() for index in classes)
    shown = Counter(index for name in images for index in classes_of[name])
    assert len(set(images)) == len(images) <= COVERAGE.max_total
    assert all(shown[index] >= min(2, count) for index, count in available.items())


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def of_onnx(path: Path) -> Network:
    """An ONNX file as a function of a batch."""
    opened = session(path)
    name = opened.get_inputs()[0].name
    return lambda batch: torch.from_numpy(opened.run(None, {name: batch.numpy()})[0]).float()


def map_deltas(found: Compared, network: nn.Module) -> dict[str, float]:
    """The candidate's mAPs less the checkpoint's, at COCO's settings."""
    annotations = found.data.parent / "instances.json"
    ids = {entry["file_name"]: entry["id"] for entry in json.loads(annotations.read_text())["images"]}
    scores = []
    for run in (lambda batch: network(batch)[0], of_onnx(found.candidate)):
        boxes = [box for name in found.images for box in ultralytics_boxes(run, found.data / name, ids[name])]
        scores.append(pycocotools_scores(boxes, annotations, [ids[name] for name in found.images]))
    return {name: scores[1][name] - scores[0][name] for name in ("map_0_5", "map_0_5_0_95")}


def ultralytics_boxes(run: Network, path: Path, image_id: int) -> list[dict[str, Any]]:
    image = cv2.imread(str(path))
    assert image is not None
    framed = LetterBox(DETECTOR_SIZE, auto=False)(image=image)[..., ::-1].transpose(2, 0, 1)
    batch = torch.from_numpy(np.ascontiguousarray(framed)).float()[None] / 255
    with torch.inference_mode():
        (boxes,) = non_max_suppression(run(batch), conf_thres=0.001, iou_thres=0.7, max_det=300, multi_label=True)
        corners = scale_boxes(DETECTOR_SIZE, boxes[:, :4], image.shape[:2])
    corners = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {"image_id": image_id, "category_id": int(index), "bbox": box, "score": score}
        for box, score, index in zip(corners.tolist(), boxes[:, 4].tolist(), boxes[:, 5].tolist(), strict=True)
    ]


def pycocotools_scores(boxes: list[dict[str, Any]], annotations: Path, ids: list[int]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(boxes), "bbox")
        evaluator.params.imgIds = ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {"map_0_5": float(evaluator.stats[1]), "map_0_5_0_95": float(evaluator.stats[0])}


def classification_differences(found: Compared, network: nn.Module, files: Sequence[Path]) -> tuple[Array, int]:
    """The MSE of the probabilities of each image, and on how many the two name another class."""
    words = torch.load(found.source)
    transform = create_transform(
        (3, *CLASSIFIER_SIZE),
        interpolation="bicubic",  # the backbone's own
        mean=words["mean"],
        std=words["std"],
        crop_pct=1.0,
    )
    batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        first, second = (run(batch).softmax(dim=1) for run in (network, of_onnx(found.candidate)))
    mismatches = int((first.argmax(dim=1) != second.argmax(dim=1)).sum())
    return np.asarray(((first - second) ** 2).mean(dim=1)), mismatches
