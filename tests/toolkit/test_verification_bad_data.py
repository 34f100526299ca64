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
from app.toolkit.verification.request import Sampling, VerifyRequest
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes

Edit = Callable[[dict[str, Any]], object]

FIRST_TEN = ", ".join(f"6411000{number}0" for number in range(1, 10)) + ", 641100100"
NO_PICTURE = "10 bytes that are no picture of these kinds"


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


def refused(request: VerifyRequest, code: str, message: str, *, expected: str, received: str, hint: str = "") -> None:
    with pytest.raises(ToolkitError) as raised:
        verify(request)
    told = {"code": code, "message": message, "expected": expected, "received": received, "hint": hint}
    assert raised.value.as_dict() == told


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
    refused(
        replace(detectors, images=tmp_path / "empty", annotations=None),
        "NO_IMAGES",
        "there is no image in the folder",
        expected="at least one file ending in .bmp, .jpeg, .jpg, .png",
        received=str(tmp_path / "empty"),
        hint="name the folder that holds the pictures, or one above it",
    )


def test_an_unreadable_image_is_passed_over_and_named(classifiers: VerifyRequest) -> None:
    names = spoilt(classifiers, 1)
    facts = verify(classifiers)
    assert (facts.verdict, facts.chosen_images, facts.sampled_images) == ("passed", 36, 35)
    report, page = write_reports(facts, classifiers.folder)
    told = {names[0]: NO_PICTURE}
    assert json.loads(report.read_text())["extra"]["unreadable"] == {"count": 1, "images": told}
    assert names[0] in page.read_text()


def test_many_unreadable_images(classifiers: VerifyRequest) -> None:
    spoilt(classifiers, 2)
    refused(
        classifiers,
        "UNREADABLE_IMAGE",
        "2 of 36 images cannot be read",
        expected="at most 5%, which are passed over",
        received=f"641100010/000.png: {NO_PICTURE}; 641100010/001.png: {NO_PICTURE}",
        hint="remove the files or replace them by readable ones",
    )


def test_nothing_but_unreadable_images(classifiers: VerifyRequest) -> None:
    spoilt(classifiers, 36)
    named = "; ".join(f"641100010/00{index}.png: {NO_PICTURE}" for index in range(3))
    refused(
        classifiers,
        "NO_IMAGES",
        "none of the 36 images can be read",
        expected="at least one jpg, png or bmp picture",
        received=named,
        hint="open one of them in a viewer: it may be cut short, or not be what its name says",
    )


def test_another_version_of_an_annotated_image(detectors: VerifyRequest, tmp_path: Path) -> None:
    shutil.copytree(detectors.images, tmp_path / "images")
    cv2.imwrite(str(tmp_path / "images" / "000002.jpg"), np.zeros((320, 480, 3), np.uint8))
    refused(
        replace(detectors, images=tmp_path / "images"),
        "INVALID_ANNOTATIONS",
        "the annotations were made on another version of 000002.jpg: its size differs",
        expected="640 x 640 px, as the annotations say",
        received="480 x 320 px, turned as its EXIF says",
        hint="give the images that were annotated, or correct width and height",
    )


# -- labels -------------------------------------------------------------------------------------------------------
def test_annotations_of_other_images(detectors: VerifyRequest) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            entry["file_name"] = f"street_{entry['file_name']}"

    refused(
        edited(detectors, edit),
        "INVALID_ANNOTATIONS",
        "the annotations name images that are not in the folder",
        expected=f"every file_name under {detectors.images}",
        received="4 of 4 missing, the first ['street_000000.jpg', 'street_000001.jpg', 'street_000002.jpg']",
        hint="these are annotations of other images, or file_name starts from another folder",
    )


def test_annotations_of_other_classes(detectors: VerifyRequest) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": index, "name": f"sign {index}"} for index in range(5)]
        for one in content["annotations"]:
            one["category_id"] %= 5

    refused(
        edited(detectors, edit),
        "INVALID_ANNOTATIONS",
        "4 of the annotations' categories are no class of the model: sign 0, sign 1, sign 3, sign 4",
        expected=f"the model's 12 classes: {FIRST_TEN}, ...",
        received="5 categories: sign 0, sign 1, sign 2, sign 3, sign 4",
        hint="rename the categories, or give annotations of the model's own data",
    )


def test_folders_of_other_classes(classifiers: VerifyRequest) -> None:
    (classifiers.images / "641100030").rename(classifiers.images / "screws")
    refused(
        classifiers,
        "INVALID_ANNOTATIONS",
        "1 of 12 folders are not classes of the model: screws",
        expected=f"folders named as the model's 12 classes: {FIRST_TEN}, ...",
        received="12 folders: 641100010, 641100020, " + FIRST_TEN[33:] + ", 641100110, ...",
        hint="rename the folders, or take those out that are no classes",
    )


def test_a_box_outside_of_its_image(detectors: VerifyRequest) -> None:
    refused(
        edited(detectors, lambda content: content["annotations"][0].update(bbox=[600, 10, 60, 20])),
        "INVALID_ANNOTATIONS",
        "1 boxes of edited.json cannot be",
        expected="[x, y, width, height] in px with an area, inside of the image to 1 px",
        received="image 0: [600, 10, 60, 20] is outside of 640 x 640 px",
        hint="give the annotations of these very images",
    )


def test_annotations_on_which_the_reference_finds_nothing_are_doubted(detectors: VerifyRequest) -> None:
    def edit(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["bbox"] = [0, 0, 20, 20]

    assert not any("mAP" in note for note in verify(detectors).notes if "labelled" not in note)
    notes = verify(edited(detectors, edit)).notes
    assert any(note.startswith("the reference's mAP at IoU 0.5 is only 0") for note in notes)


# -- models -------------------------------------------------------------------------------------------------------
def test_models_of_different_class_counts(detectors: VerifyRequest, make_model: MakeModel) -> None:
    refused(
        replace(detectors, reference=make_model("yolov8n")),
        "MODELS_DIFFER",
        "the two models cannot be compared: their class counts differ",
        expected="yolov8n-3.pt: 80",
        received="pills_fp32.onnx: 12",
        hint="compare a model with what was made from it",
    )


def test_models_of_two_tasks(detectors: VerifyRequest, classifier: Path) -> None:
    refused(
        replace(detectors, reference=classifier),
        "MODELS_DIFFER",
        "the two models cannot be compared: their answers differ",
        expected="pills_classifier.pt: logits",
        received="pills_fp32.onnx: boxes",
        hint="compare a model with what was made from it",
    )


def test_a_reference_of_another_fixed_input_size(detectors: VerifyRequest, pills: Path, tmp_path: Path) -> None:
    smaller = export_and_prove(pills, tmp_path / "smaller.onnx", input_size=(320, 320)).path
    refused(
        replace(detectors, reference=smaller),
        "INVALID_INPUT_SIZE",
        "no input size suits both models",
        expected="one input size for smaller.onnx and pills_fp32.onnx",
        received="smaller.onnx: fixed [320, 320], pills_fp32.onnx: fixed [640, 640]",
        hint="export one of them at the other's size, or with dynamic axes",
    )


def test_a_size_that_the_candidate_does_not_take(detectors: VerifyRequest) -> None:
    refused(
        replace(detectors, input_size=(320, 320)),
        "INVALID_INPUT_SIZE",
        "the models do not take the input size that was asked for",
        expected="pills_yolov8n.pt: any size, pills_fp32.onnx: fixed [640, 640]",
        received="input_size [320, 320]",
        hint="leave input_size out, or export with dynamic axes",
    )


def test_a_quantised_candidate_in_a_smoke_test_needs_limits(classifiers: VerifyRequest, tmp_path: Path) -> None:
    quantize_dynamic(classifiers.candidate, tmp_path / "quantised.onnx")
    request = replace(classifiers, candidate=tmp_path / "quantised.onnx", sampling=Sampling(mode="smoke"))
    refused(
        request,
        "INVALID_VERIFICATION",
        "quantised.onnx is quantised, and only its kernels would be judged here",
        expected="a task's limits (mode coverage, full or auto), or kernel limits of your own",
        received="mode smoke without kernel limits",
        hint="ask for mode coverage, or give kernel_limits: boxes_px, scores or values",
    )
    facts = verify(replace(request, kernel_limits={"values": 1.0}))
    assert facts.verdict == "passed" and facts.candidate.dtype == "int8"
