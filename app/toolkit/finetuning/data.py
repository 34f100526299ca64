"""COCO data made ready for a detector's training: classes by name, boxes checked, a part kept out for validation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.toolkit.coco import (
    CocoData,
    check_image_size,
    content_of,
    corners_of,
    integer_of,
    names_of_categories,
)
from app.toolkit.errors import InvalidAnnotations
from app.toolkit.images import read_image

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainingData:
    """What to train on.

    `validation` chooses the best weights; without it `validation_share` of the training images (at least one that has
    boxes) is kept out of the training for that, the same images for the same seed.
    """

    train: CocoData
    validation: CocoData | None = None
    validation_share: float = 0.1


@dataclass(frozen=True)
class LabelledImage:
    """One image: `classes` [n] float32 are the model's, `boxes` [n, 4] float32 (centre, size) in 0..1 of the image."""

    image_id: int
    path: Path
    size_px: tuple[int, int]
    classes: Float32Array
    boxes: Float32Array


@dataclass(frozen=True)
class Split:
    """The images of both parts, and the validation's as `coco.evaluate` takes them, its categories matched by name."""

    train: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    validation_coco: CocoData


def split_data(data: TrainingData, names: Mapping[int, str], *, seed: int) -> Split:
    """Read every image's boxes and part the images. `names` are the model's classes.

    Crowds and boxes without an area inside their image are left out; an image without boxes stays, as background.

    Raises InvalidAnnotations for no boxes, a category that the model does not know, an image whose size is not what the
    annotations say, or too few images to keep one out; UnreadableImage for a file that is no picture.
    """
    train = _read(data.train, names)
    if data.validation is not None:
        kept_out = _read(data.validation, names)
        source = data.validation
    else:
        train, kept_out = _part(train, data.validation_share, seed)
        source = data.train
    file_of = dict(zip(source.image_ids, source.file_names, strict=True))
    coco = replace(
        source,
        image_ids=tuple(image.image_id for image in kept_out),
        file_names=tuple(file_of[image.image_id] for image in kept_out),
        category_ids=_categories_by_name(source, names),
    )
    return Split(tuple(train), tuple(kept_out), coco)


def _part(images: Sequence[LabelledImage], share: float, seed: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Parts images with and without boxes alike, so that both parts have boxes to learn and to find."""
    order = random.Random(seed)  # noqa: S311 - no secret
    with_boxes = [image for image in images if len(image.classes)]
    without = [image for image in images if not len(image.classes)]
    if len(with_boxes) < 2:
        raise InvalidAnnotations(
            "one image with boxes cannot be both learned from and kept out",
            expected="at least 2 images with boxes, or validation data of its own",
            received=f"{len(with_boxes)} image with boxes",
            hint="give more images",
        )
    kept_out: set[int] = set()
    for group, least in ((with_boxes, 1), (without, 0)):
        shuffled = order.sample(group, len(group))
        count = min(max(round(len(group) * share), least), max(len(group) - 1, 0))
        kept_out.update(image.image_id for image in shuffled[:count])
    return (
        [image for image in images if image.image_id not in kept_out],
        [image for image in images if image.image_id in kept_out],
    )


def _read(data: CocoData, names: Mapping[int, str]) -> list[LabelledImage]:
    content = content_of(data)
    class_of = _class_of_category(data, content, names)
    entries = {int(entry["id"]): entry for entry in content["images"]}
    found: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in data.image_ids}
    for annotation in content["annotations"]:
        group = found.get(integer_of(data, annotation, "image_id"))
        if group is not None and not annotation.get("iscrowd"):
            group.append(annotation)
    images = [
        _labelled(data, entries[image_id], file_name, found[image_id], class_of)
        for image_id, file_name in zip(data.image_ids, data.file_names, strict=True)
    ]
    if not any(len(image.classes) for image in images):
        raise InvalidAnnotations(
            f"{data.annotations.name} holds no box on the images that are used",
            expected="at least one annotation with a bbox that is no crowd",
            received=f"{len(content['annotations'])} annotations, {len(images)} images",
        )
    return images


def _labelled(
    data: CocoData,
    entry: Mapping[str, Any],
    file_name: str,
    annotations: Sequence[Mapping[str, Any]],
    class_of: Mapping[int, int],
) -> LabelledImage:
    path = data.images / file_name
    height, width = read_image(path).shape[:2]  # decoded whole: what is broken shall not end an epoch
    declared = (int(entry.get("height") or height), int(entry.get("width") or width))
    check_image_size(file_name, declared, (height, width))
    rows: list[tuple[float, ...]] = []
    for annotation in annotations:
        corners = corners_of(data, annotation)
        left, right = (min(max(x, 0.0), float(width)) for x in (corners[0], corners[2]))
        top, bottom = (min(max(y, 0.0), float(height)) for y in (corners[1], corners[3]))
        if right > left and bottom > top:
            index = class_of[integer_of(data, annotation, "category_id")]
            centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            rows.append((index, *centre, (right - left) / width, (bottom - top) / height))
    table = np.array(sorted(set(rows)), dtype=np.float32).reshape(-1, 5)
    return LabelledImage(int(entry["id"]), path, (height, width), table[:, 0], table[:, 1:])


def _class_of_category(data: CocoData, content: Mapping[str, Any], names: Mapping[int, str]) -> dict[int, int]:
    """The model's class of each category id that an annotation uses; unused categories may be anything."""
    class_of_name = {name: index for index, name in names.items()}
    categories = names_of_categories(content)
    wanted = set(data.image_ids)
    used = {
        integer_of(data, annotation, "category_id")
        for annotation in content["annotations"]
        if integer_of(data, annotation, "image_id") in wanted and not annotation.get("iscrowd")
    }
    unknown = sorted(repr(categories.get(key, key)) for key in used if categories.get(key) not in class_of_name)
    if unknown:
        raise InvalidAnnotations(
            f"the model does not know {len(unknown)} of the annotations' categories: {', '.join(unknown[:10])}",
            expected=f"the model's classes {list(names.values())[:20]}",
            received=f"categories named {', '.join(unknown[:10])}",
            hint="categories are matched with the model's classes by name: rename them",
        )
    return {key: class_of_name[categories[key]] for key in used}


def _categories_by_name(data: CocoData, names: Mapping[int, str]) -> tuple[int, ...]:
    """The category id of each of the model's classes. A class that the data does not have gets an id of none."""
    content = content_of(data)
    id_of_name = {name: key for key, name in names_of_categories(content).items()}
    return tuple(id_of_name.get(names[index], -1 - index) for index in sorted(names))
