"""Data for recovery training: classes by name, boxes checked, the split stable, what cannot teach refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from app.toolkit.coco import CocoData, read_coco
from app.toolkit.errors import InvalidAnnotations, UnreadableImage
from app.toolkit.finetuning.data import TrainingData, split_data
from app.toolkit.finetuning.finetune import finetune
from tests.toolkit.recovery import SHORT, edited, network_of


def test_classes_are_matched_by_name_crowds_left_out_and_empty_images_kept(
    pills: Path, few: CocoData, content: dict[str, Any], tmp_path: Path
) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    renumbered = {entry["id"]: 500 - 7 * entry["id"] for entry in content["categories"]}
    first, second, third = few.image_ids[:3]
    boxes = [{**box, "category_id": renumbered[box["category_id"]]} for box in content["annotations"]]
    for box in boxes:
        box["iscrowd"] = int(box["image_id"] == second)
    boxes.append({**next(box for box in boxes if box["image_id"] == first), "bbox": [700.0, 10.0, 20.0, 20.0]})
    boxes = [box for box in boxes if box["image_id"] != third]
    categories = [{**entry, "id": renumbered[entry["id"]]} for entry in content["categories"]]
    unused = {"id": 9, "name": "a shoe"}
    data = edited(few, tmp_path / "a.json", categories=[unused, *categories], annotations=boxes)
    data = replace(data, image_ids=few.image_ids, file_names=few.file_names)
    plain = {image.image_id: image for part in _parts(TrainingData(few), names) for image in part}
    found = {image.image_id: image for part in _parts(TrainingData(data), names) for image in part}
    assert found.keys() == plain.keys()
    assert len(found[second].classes) == len(found[third].classes) == 0 < len(plain[second].classes)
    for image_id in set(found) - {second, third}:
        np.testing.assert_array_equal(found[image_id].classes, plain[image_id].classes)
        np.testing.assert_array_equal(found[image_id].boxes, plain[image_id].boxes)
    split = split_data(TrainingData(data), names, seed=0)
    assert split.validation_coco.category_ids == tuple(renumbered[index] for index in range(12))


def _parts(data: TrainingData, names: Mapping[int, str]) -> tuple[Any, ...]:
    split = split_data(data, names, seed=0)
    return split.train, split.validation


def test_boxes_are_fractions_of_the_image_and_cut_at_its_edges(pills: Path, tmp_path: Path) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(tmp_path / name)
    boxes = [{"id": n, "image_id": n, "category_id": 4, "bbox": [-20, 50, 40, 100]} for n in (1, 2)]
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "width": 200, "height": 100}],
        "annotations": boxes,
        "categories": [{"id": 4, "name": names[7]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    split = split_data(TrainingData(read_coco(tmp_path / "a.json", tmp_path)), names, seed=0)
    assert len(split.train) == len(split.validation) == 1
    np.testing.assert_allclose(split.train[0].boxes, [[0.05, 0.75, 0.1, 0.5]], rtol=1e-6)
    assert split.train[0].classes.tolist() == [7.0]


def test_the_split_is_stable_by_seed_and_validation_data_is_taken_as_it_is(pills: Path, scenes: CocoData) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    picked = [{image.image_id for image in _parts(TrainingData(scenes), names)[1]} for _ in range(2)]
    other = {image.image_id for image in split_data(TrainingData(scenes), names, seed=1).validation}
    assert picked[0] == picked[1] != other and len(other) == 4
    first = replace(scenes, image_ids=scenes.image_ids[:5], file_names=scenes.file_names[:5])
    rest = replace(scenes, image_ids=scenes.image_ids[5:8], file_names=scenes.file_names[5:8])
    train, validation = _parts(TrainingData(first, rest), names)
    assert tuple(image.image_id for image in train) == first.image_ids
    assert tuple(image.image_id for image in validation) == rest.image_ids


def test_annotations_that_cannot_teach_are_refused(
    pruned: nn.Module, few: CocoData, content: dict[str, Any], tmp_path: Path
) -> None:
    shoes = [{**entry, "name": "a shoe"} if entry["id"] == 3 else entry for entry in content["categories"]]
    boxes = content["annotations"]
    cases: dict[str, dict[str, Any]] = {
        "does not know 1 .*'a shoe'": {"categories": shoes},
        "holds no box": {"annotations": []},
        "has no box": {"annotations": [{**boxes[0], "bbox": None}]},
        "is no COCO": {"annotations": [[1, 2]]},
        "has no image_id": {"annotations": [{"id": 1}]},
        "cannot be both": {"annotations": boxes[:1]},
        "another version": {"images": [{**entry, "width": 641} for entry in content["images"]]},
    }
    for text, changes in cases.items():
        with pytest.raises(InvalidAnnotations, match=text) as raised:
            finetune(pruned, TrainingData(edited(few, tmp_path / "x.json", **changes)), SHORT, tmp_path)
        assert raised.value.expected and raised.value.received
    with pytest.raises(InvalidAnnotations) as raised:
        finetune(pruned, TrainingData(edited(few, tmp_path / "x.json", categories=shoes)), SHORT, tmp_path)
    assert "641100040" in raised.value.expected and "a shoe" in raised.value.received


def test_a_file_that_is_no_picture_is_named(
    pruned: nn.Module, few: CocoData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in few.file_names:
        (folder / name).write_bytes((few.images / name).read_bytes())
    data = replace(few, images=folder)
    (folder / few.file_names[2]).write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=few.file_names[2]):
        finetune(pruned, TrainingData(data), SHORT, tmp_path)
    assert not capsys.readouterr().out  # Ultralytics' way to open it would have called pip
    # A whole header before a broken body.
    Image.new("RGB", (640, 640)).save(folder / "whole.png")
    (folder / few.file_names[2]).write_bytes((folder / "whole.png").read_bytes()[:60])
    with pytest.raises(UnreadableImage, match=few.file_names[2]):
        finetune(pruned, TrainingData(data), SHORT, tmp_path)
