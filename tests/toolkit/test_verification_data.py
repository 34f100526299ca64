"""A verification's images and labels: what is read from real files, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.toolkit.errors import InvalidAnnotations, NoImages, UnreadableImage
from app.toolkit.images import read_image
from app.toolkit.verification.data import Unreadable, check_size, read_data
from tests.toolkit.scenes import make_scenes

Edit = Callable[[dict[str, Any]], object]
Write = Callable[[Edit], Path]

UNLABELLED = (
    "no box of 3 of the model's 12 classes is labelled, so no mAP tells of them: 641100060, 641100080, 641100090"
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes with COCO annotations, and crops by class."""
    return make_scenes(tmp_path_factory.mktemp("pills"), images=6, seed=8_001)


@pytest.fixture(scope="module")
def names(drawn: Path) -> dict[int, str]:
    """The twelve pills, as the model calls them."""
    return {int(key): code for key, code in json.loads((drawn / "edi_codes.json").read_text()).items()}


@pytest.fixture
def write(drawn: Path, tmp_path: Path) -> Write:
    """Annotations of the scenes, edited."""

    def written(edit: Edit) -> Path:
        content = json.loads((drawn / "instances.json").read_text())
        edit(content)
        (tmp_path / "edited.json").write_text(json.dumps(content))
        return tmp_path / "edited.json"

    return written


@pytest.fixture
def crops(drawn: Path, tmp_path: Path) -> Path:
    """Two crops of each pill, in class folders that may be changed."""
    shutil.copytree(drawn / "crops", tmp_path / "crops", ignore=shutil.ignore_patterns("00[2-9].png"))
    return tmp_path / "crops"


def first_box(content: dict[str, Any], **changes: Any) -> None:
    content["annotations"][0].update(changes)


def renamed(content: dict[str, Any], *, keep: int = 0) -> None:
    for category in content["categories"][keep:]:
        category["name"] = f"pill {category['id']}"


def renumbered(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category["id"] = 100 + 2 * category["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 100 + 2 * annotation["category_id"]


def one_category_each(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["image_id"]


def test_a_detectors_images_show_the_classes_of_their_boxes(drawn: Path, names: dict[int, str]) -> None:
    data = read_data(drawn / "images", drawn / "instances.json", names, task="boxes")
    content = json.loads((drawn / "instances.json").read_text())
    assert [sample.name for sample in data.samples] == [f"{index:06d}.jpg" for index in range(6)]
    for sample in data.samples:
        shown = {one["category_id"] for one in content["annotations"] if one["image_id"] == sample.image_id}
        assert sample.classes == shown and sample.label is None and sample.size_px == (640, 640)
        check_size(sample, read_image(sample.path))
    assert data.labels == "coco" and data.warnings == (UNLABELLED,)
    assert sorted(data.unlabelled) == [5, 7, 8]
    assert data.coco is not None and data.coco.category_ids == tuple(range(12))


def test_categories_are_matched_by_name_whatever_their_ids(drawn: Path, names: dict[int, str], write: Write) -> None:
    plain = read_data(drawn / "images", drawn / "instances.json", names, task="boxes")
    turned = {index: names[11 - index] for index in names}
    data = read_data(drawn / "images", write(renumbered), turned, task="boxes")
    assert data.coco is not None and data.coco.category_ids == tuple(122 - 2 * index for index in range(12))
    for before, after in zip(plain.samples, data.samples, strict=True):
        assert after.classes == {11 - index for index in before.classes}


def test_a_class_that_the_data_lacks_has_the_id_of_no_category(drawn: Path, names: dict[int, str]) -> None:
    data = read_data(drawn / "images", drawn / "instances.json", {**names, 12: "a shoe"}, task="boxes")
    assert data.coco is not None and data.coco.category_ids == (*range(12), -13)


def test_categories_of_other_names_are_matched_in_the_order_of_ids_and_that_is_said(
    drawn: Path, names: dict[int, str], write: Write
) -> None:
    plain = read_data(drawn / "images", drawn / "instances.json", names, task="boxes")

    def edit(content: dict[str, Any]) -> None:
        renumbered(content)
        renamed(content)

    data = read_data(drawn / "images", write(edit), names, task="boxes")
    assert data.coco is not None and data.coco.category_ids == tuple(range(100, 124, 2))
    assert [sample.classes for sample in data.samples] == [sample.classes for sample in plain.samples]
    assert "in order of ids" in data.warnings[0]


def test_the_order_of_ids_is_not_taken_where_a_name_contradicts_it(
    drawn: Path, names: dict[int, str], write: Write
) -> None:
    turned = {index: names[11 - index] for index in names}
    with pytest.raises(InvalidAnnotations, match="no class of the model: pill"):
        read_data(drawn / "images", write(lambda content: renamed(content, keep=1)), turned, task="boxes")


@pytest.mark.parametrize("second", ["crane", "bird"])
def test_a_name_that_two_classes_share_stands_for_neither(
    second: str, drawn: Path, names: dict[int, str], write: Write
) -> None:
    """ImageNet has two classes called crane: only the order tells them apart."""

    def edit(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": n, "name": name} for n, name in {**names, 3: "crane", 8: second}.items()]
        content["annotations"][0]["category_id"] = 3

    data = read_data(drawn / "images", write(edit), {**names, 3: "crane", 8: "crane"}, task="boxes")
    assert data.coco is not None and data.coco.category_ids == tuple(range(12))
    assert 3 in data.samples[0].classes and "in order of ids" in data.warnings[0]


def test_crowds_show_no_class(drawn: Path, names: dict[int, str], write: Write) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["image_id"] == 0)

    data = read_data(drawn / "images", write(edit), names, task="boxes")
    assert data.samples[0].classes == frozenset() and data.samples[1].classes


def test_images_without_annotations_are_left_out_and_counted(drawn: Path, names: dict[int, str], write: Write) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"] = content["images"][:4]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] < 4]

    data = read_data(drawn / "images", write(edit), names, task="boxes")
    assert len(data.samples) == 4
    assert data.warnings == (UNLABELLED, "2 images of the folder are not in edited.json and were left out")


def test_a_classifier_is_labelled_by_annotations_of_one_category_on_each_image(
    drawn: Path, names: dict[int, str], write: Write
) -> None:
    data = read_data(drawn / "images", write(one_category_each), names, task="classes")
    assert [sample.label for sample in data.samples] == list(range(6))
    assert data.labels == "coco" and data.coco is None
    with pytest.raises(InvalidAnnotations, match="no labelling for a classifier") as raised:
        read_data(drawn / "images", drawn / "instances.json", names, task="classes")
    assert "of 6 images" in raised.value.received


def test_a_model_of_other_answers_takes_the_categories_as_they_are(drawn: Path, write: Write) -> None:
    data = read_data(drawn / "images", write(renumbered), {}, task="raw")
    assert data.labels == "coco" and data.coco is None and data.classes <= frozenset(range(12))


BAD_ANNOTATIONS: dict[str, Edit] = {
    "share an id": lambda content: content["images"][1].update(id=0),
    "categories share an id": lambda content: content["categories"][1].update(id=0),
    "no image": lambda content: content.update(images=[]),
    "not in the folder": lambda content: content["images"][0].update(file_name="gone.jpg"),
    "that are not in the folder": lambda content: content["images"][0].update(file_name="../images/000000.jpg"),
    "are of images that edited.json does not list": lambda content: first_box(content, image_id=77),
    "categories that edited.json does not list": lambda content: first_box(content, category_id=77),
    "1 boxes of edited.json cannot be": lambda content: first_box(content, bbox=[600, 10, 42, 20]),
    "boxes of edited.json cannot be": lambda content: first_box(content, bbox=[-2, 10, 20, 20]),
    "boxes .* cannot be": lambda content: first_box(content, bbox=[10, 10, 0, 20]),
    "boxes .* cannot": lambda content: first_box(content, bbox=[10, 10, 20, -5]),
    "has no box": lambda content: first_box(content, bbox=[10, 10, float("nan"), 5]),
    "an annotation in edited.json has no box": lambda content: first_box(content, bbox=[10, 10, 20]),
    "has no image_id": lambda content: content["annotations"][0].pop("image_id"),
    "has no category_id": lambda content: content["annotations"][0].pop("category_id"),
    "has no width": lambda content: content["images"][0].update(width="wide"),
    "holds no box": lambda content: content.update(annotations=[]),
    "a list of objects": lambda content: content.update(annotations=[1]),
    "is no COCO annotation file": lambda content: content.pop("categories"),
}


@pytest.mark.parametrize("words", BAD_ANNOTATIONS)
def test_annotations_that_cannot_be_are_refused(words: str, drawn: Path, names: dict[int, str], write: Write) -> None:
    with pytest.raises(InvalidAnnotations, match=words) as raised:
        read_data(drawn / "images", write(BAD_ANNOTATIONS[words]), names, task="boxes")
    assert raised.value.expected and raised.value.received


def test_a_box_outside_is_named_with_its_image_and_the_size(drawn: Path, names: dict[int, str], write: Write) -> None:
    path = write(lambda content: first_box(content, bbox=[600, 10, 41.5, 20]))
    with pytest.raises(InvalidAnnotations) as raised:
        read_data(drawn / "images", path, names, task="boxes")
    assert raised.value.received == "image 0: [600, 10, 41.5, 20] is outside of 640 x 640 px"


def test_a_box_may_reach_a_pixel_over_the_edge(drawn: Path, names: dict[int, str], write: Write) -> None:
    path = write(lambda content: first_box(content, bbox=[-1, 10, 642, 20]))
    assert read_data(drawn / "images", path, names, task="boxes").warnings == (UNLABELLED,)


def test_sizes_that_are_not_given_cannot_be_checked_and_that_is_said(
    drawn: Path, names: dict[int, str], write: Write
) -> None:
    data = read_data(drawn / "images", write(lambda content: content["images"][0].pop("width")), names, task="boxes")
    assert data.samples[0].size_px is None and "boxes of 1 images could not be checked" in data.warnings[0]
    check_size(data.samples[0], np.zeros((5, 7, 3), np.uint8))


def test_an_image_of_another_size_than_its_annotations_is_refused(drawn: Path, names: dict[int, str]) -> None:
    data = read_data(drawn / "images", drawn / "instances.json", names, task="boxes")
    with pytest.raises(InvalidAnnotations, match="another version of 000000") as raised:
        check_size(data.samples[0], np.zeros((640, 320, 3), np.uint8))
    assert raised.value.received.startswith("320 x 640 px")


def test_annotations_of_other_images_say_so(drawn: Path, names: dict[int, str], tmp_path: Path) -> None:
    shutil.copy(drawn / "crops" / names[0] / "000.png", tmp_path / "other.png")
    with pytest.raises(InvalidAnnotations) as raised:
        read_data(tmp_path, drawn / "instances.json", names, task="boxes")
    assert raised.value.received.startswith("6 of 6 missing") and "other images" in raised.value.hint
    shutil.copy(drawn / "images" / "000000.jpg", tmp_path)
    with pytest.raises(InvalidAnnotations) as raised:
        read_data(tmp_path, drawn / "instances.json", names, task="boxes")
    assert raised.value.received.startswith("5 of 6 missing") and "add the missing images" in raised.value.hint


def test_other_class_counts_are_both_told(drawn: Path, names: dict[int, str], write: Write) -> None:
    few = {index: f"thing {index}" for index in range(5)}
    with pytest.raises(InvalidAnnotations) as raised:
        read_data(drawn / "images", drawn / "instances.json", few, task="boxes")
    assert "5 classes: thing 0" in raised.value.expected and f"12 categories: {names[0]}" in raised.value.received


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoImages):
            read_data(folder, None, {}, task="raw")


def test_class_folders_label_a_classifier_and_stratify_a_detector(crops: Path, names: dict[int, str]) -> None:
    index_of = {name: index for index, name in names.items()}
    labelled = read_data(crops, None, names, task="classes")
    assert len(labelled.samples) == 24 and labelled.labels == "folders" and labelled.warnings == ()
    for sample in labelled.samples:
        assert sample.label == index_of[sample.path.parent.name] and sample.classes == {sample.label}
        assert sample.name == f"{sample.path.parent.name}/{sample.path.name}"
    detector = read_data(crops, None, names, task="boxes")
    assert [one.classes for one in detector.samples] == [one.classes for one in labelled.samples]
    assert {one.label for one in detector.samples} == {None} and detector.coco is None


def test_a_folder_around_the_class_folders_is_seen_through(crops: Path, names: dict[int, str]) -> None:
    wrapped = read_data(crops.parent, None, names, task="classes")
    plain = read_data(crops, None, names, task="classes")
    assert [one.label for one in wrapped.samples] == [one.label for one in plain.samples]
    assert wrapped.samples[0].name == f"crops/{plain.samples[0].name}"
    for folder in sorted(crops.iterdir())[1:]:
        shutil.rmtree(folder)
    assert {one.label for one in read_data(crops, None, names, task="classes").samples} == {0}


@pytest.mark.parametrize("form", ["class{}", "class_{}", "{}"])
def test_folders_are_in_order_where_the_model_names_no_class(form: str, crops: Path, names: dict[int, str]) -> None:
    generic = {index: form.format(index) for index in names}
    by_order = read_data(crops, None, generic, task="classes")
    by_name = read_data(crops, None, names, task="classes")
    assert [one.label for one in by_order.samples] == [one.label for one in by_name.samples]


def test_folders_of_which_some_are_classes_are_refused(crops: Path, names: dict[int, str]) -> None:
    (crops / names[3]).rename(crops / "shoes")
    with pytest.raises(InvalidAnnotations, match="1 of 12 folders are not classes of the model: shoes") as raised:
        read_data(crops, None, names, task="classes")
    assert names[3] in raised.value.expected


def test_folders_that_are_no_classes_leave_the_images_unlabelled(crops: Path) -> None:
    data = read_data(crops, None, {0: "cat", 1: "dog"}, task="classes")
    assert data.labels == "none" and data.classes == frozenset() and "taken as unlabelled" in data.warnings[0]


def test_images_beside_the_class_folders_have_no_label(crops: Path, names: dict[int, str]) -> None:
    shutil.copy(crops / names[0] / "000.png", crops / "loose.png")
    data = read_data(crops, None, names, task="classes")
    loose = next(sample for sample in data.samples if sample.name == "loose.png")
    assert loose.label is None and data.warnings == ("1 images lie in no class's folder and have no label",)


def test_a_flat_folder_has_no_labels(drawn: Path, names: dict[int, str]) -> None:
    data = read_data(drawn / "images", None, names, task="boxes")
    assert data.labels == "none" and data.classes == frozenset() and data.coco is None and data.warnings == ()
    assert {sample.image_id for sample in data.samples} == {None}


def test_a_few_unreadable_images_are_named_and_many_are_an_error() -> None:
    unreadable = Unreadable()
    unreadable.check_any(0)
    unreadable.check_share(0)
    unreadable.note("a.png", "cut short")
    unreadable.check_any(2)
    unreadable.check_share(20)
    assert unreadable.reasons == {"a.png": "cut short"}
    with pytest.raises(UnreadableImage, match="1 of 19 images") as raised:
        unreadable.check_share(19)
    assert raised.value.received == "a.png: cut short"
    with pytest.raises(NoImages, match="none of the 1 images"):
        unreadable.check_any(1)
