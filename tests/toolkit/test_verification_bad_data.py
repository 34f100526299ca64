"""What `verify` says of images, labels and models that cannot be compared: its code, and words that lead on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnxruntime.quantization import quantize_dynamic

from app.toolkit.errors import ToolkitError
from app.toolkit.pipeline import ExportResult, export_and_prove
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.report import write_reports
from app.toolkit.verification.request import Mode, Sampling, VerifyRequest
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes with COCO annotations, and 96 crops by class."""
    return make_scenes(tmp_path_factory.mktemp("pills"), images=4, seed=8_002)


@pytest.fixture(scope="module")
def small(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's export."""
    return export_and_prove(classifier, tmp_path_factory.mktemp("small") / "small.onnx", dynamic=True).path


@pytest.fixture
def detectors(pills: Path, exported: ExportResult, drawn: Path, tmp_path: Path) -> VerifyRequest:
    """A comparison in which nothing is wrong, to be spoilt."""
    return VerifyRequest(
        reference=pills,
        candidate=exported.path,
        images=drawn / "images",
        folder=tmp_path,
        annotations=drawn / "instances.json",
        sampling=Sampling(mode="full"),
    )


@pytest.fixture
def classifiers(classifier: Path, small: Path, drawn: Path, tmp_path: Path) -> VerifyRequest:
    """Another, on three crops of each pill that may be changed."""
    shutil.copytree(drawn / "crops", tmp_path / "crops", ignore=shutil.ignore_patterns("00[3-9].png"))
    return VerifyRequest(
        reference=classifier,
        candidate=small,
        images=tmp_path / "crops",
        folder=tmp_path,
        sampling=Sampling(mode="full"),
    )


def refused(request: VerifyRequest, code: str, *, expected: str, received: str, hint: str = "") -> None:
    with pytest.raises(ToolkitError) as raised:
        verify(request)
    error = raised.value
    assert (error.code, error.expected, error.received, error.hint) == (code, expected, received, hint)


def edited(request: VerifyRequest, edit: Edit) -> VerifyRequest:
    """The request with its annotations changed."""
    assert request.annotations is not None
    content = json.loads(request.annotations.read_text())
    edit(content)
    (request.folder / "edited.json").write_text(json.dumps(content))
    return replace(request, annotations=request.folder / "edited.json")


def spoilt(request: VerifyRequest, count: int) -> list[str]:
    """So many images of the folder become text; returns their names in it."""
    files = sorted(request.images.rglob("*.png"))[:count]
    for file in files:
        file.write_text("no picture")
    return [file.relative_to(request.images).as_posix() for file in files]


# -- images -------------------------------------------------------------------------------------------------------
def test_no_images(detectors: VerifyRequest, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(replace(detectors, images=tmp_path / "empty", annotations=None), "NO_IMAGES", expected="?", received="?")


def test_an_unreadable_image_is_passed_over_and_named(classifiers: VerifyRequest) -> None:
    names = spoilt(classifiers, 1)
    facts = verify(classifiers)
    assert (facts.verdict, facts.chosen_images, facts.sampled_images) == ("passed", 36, 35)
    report, page = write_reports(facts, classifiers.folder)
    told = {names[0]: "10 bytes that are no picture of these kinds"}
    assert json.loads(report.read_text())["extra"]["unreadable"] == {"count": 1, "images": told}
    assert names[0] in page.read_text()


def test_many_unreadable_images(classifiers: VerifyRequest) -> None:
    spoilt(classifiers, 2)
    refused(classifiers, "UNREADABLE_IMAGE", expected="?", received="?")


def test_nothing_but_unreadable_images(classifiers: VerifyRequest) -> None:
    spoilt(classifiers, 36)
    refused(classifiers, "NO_IMAGES", expected="?", received="?")


def test_another_version_of_an_annotated_image(detectors: VerifyRequest, tmp_path: Path) -> None:
    shutil.copytree(detectors.images, tmp_path / "images")
    cv2.imwrite(str(tmp_path / "images" / "000002.jpg"), np.zeros((320, 480, 3), np.uint8))
    refused(replace(detectors, images=tmp_path / "images"), "INVALID_ANNOTATIONS", expected="?", received="?")


# -- labels -------------------------------------------------------------------------------------------------------
def test_annotations_of_other_images(detectors: VerifyRequest) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            entry["file_name"] = f"street_{entry['file_name']}"

    refused(edited(detectors, edit), "INVALID_ANNOTATIONS", expected="?", received="?")


def test_annotations_of_other_classes(detectors: VerifyRequest) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": index, "name": f"sign {index}"} for index in range(5)]
        for one in content["annotations"]:
            one["category_id"] %= 5

    refused(edited(detectors, edit), "INVALID_ANNOTATIONS", expected="?", received="?")


def test_folders_of_other_classes(classifiers: VerifyRequest) -> None:
    (classifiers.images / "641100030").rename(classifiers.images / "screws")
    refused(classifiers, "INVALID_ANNOTATIONS", expected="?", received="?")


def test_a_box_outside_of_its_image(detectors: VerifyRequest) -> None:
    request = edited(detectors, lambda content: content["annotations"][0].update(bbox=[600, 10, 60, 20]))
    refused(request, "INVALID_ANNOTATIONS", expected="?", received="?")


# -- models -------------------------------------------------------------------------------------------------------
def test_models_of_different_class_counts(detectors: VerifyRequest, make_model: MakeModel) -> None:
    refused(replace(detectors, reference=make_model("yolov8n")), "MODELS_DIFFER", expected="?", received="?")


def test_models_of_two_tasks(detectors: VerifyRequest, classifier: Path) -> None:
    refused(replace(detectors, reference=classifier), "MODELS_DIFFER", expected="?", received="?")


def test_a_reference_of_another_fixed_input_size(detectors: VerifyRequest, pills: Path, tmp_path: Path) -> None:
    smaller = export_and_prove(pills, tmp_path / "smaller.onnx", input_size=(320, 320)).path
    refused(replace(detectors, reference=smaller), "INVALID_INPUT_SIZE", expected="?", received="?")


def test_a_size_that_the_candidate_does_not_take(detectors: VerifyRequest) -> None:
    refused(replace(detectors, input_size=(320, 320)), "INVALID_INPUT_SIZE", expected="?", received="?")


@pytest.mark.parametrize("mode", ["smoke", "coverage"])
def test_a_quantised_candidate_in_a_smoke_test_needs_limits(
    mode: Mode, classifiers: VerifyRequest, tmp_path: Path
) -> None:
    quantize_dynamic(classifiers.candidate, tmp_path / "quantised.onnx")
    request = replace(classifiers, candidate=tmp_path / "quantised.onnx", sampling=Sampling(mode=mode))
    refused(request, "INVALID_VERIFICATION", expected="?", received="?")
