"""The images that two models are compared on, and their labels: a COCO file, class folders, or none.

Labels say which classes a sample should show, and let a mAP or an accuracy be measured. Labels that do not fit the
images or the model would give figures that mean nothing, so they are refused before anything runs.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from app.toolkit.coco import (
    CocoData,
    check_image_size,
    content_of,
    corners_of,
    integer_of,
    names_of_categories,
    read_coco,
)
from app.toolkit.errors import InvalidAnnotations, NoImages, UnreadableImage
from app.toolkit.images import Uint8Array, list_images

Labels = Literal["coco", "folders", "none"]
Task = Literal["boxes", "classes", "raw"]

OUTSIDE_PX = 1.0  # as far as rounding carries a box over its image's edge
UNREADABLE_SHARE = 0.05

GENERIC_NAME = re.compile(r"(class[ _-]?)?\d+", re.IGNORECASE)
"""What exporters call the classes of a model that names none: class0, class_0, 0."""


@dataclass(frozen=True)
class Sample:
    """One image. `name` is its path in the folder, with slashes.

    `classes` are the model's classes that the labels show on it, empty where they say nothing; `label` the one that a
    classifier should answer. `image_id` and `size_px` (H, W) are COCO's, None where there is no COCO file or it is
    silent.
    """

    path: Path
    name: str
    classes: frozenset[int] = frozenset()
    label: int | None = None
    image_id: int | None = None
    size_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class VerificationData:
    """A folder's images in order. `coco` is what a mAP is measured on, for detectors with COCO annotations only.

    `coco.category_ids[i]` is the category of the model's class i, an id that is in no file where the data lacks it.
    `unlabelled` are the model's classes of which `coco` has no box, so that no mAP tells of them.
    """

    folder: Path
    samples: tuple[Sample, ...]
    labels: Labels
    coco: CocoData | None = None
    warnings: tuple[str, ...] = ()
    unlabelled: frozenset[int] = frozenset()

    @property
    def classes(self) -> frozenset[int]:
        """The model's classes that any image shows."""
        return frozenset().union(*(sample.classes for sample in self.samples))


@dataclass
class Unreadable:
    """The images that could not be decoded when their turn came: passed over and named, unless they are many."""

    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, reason: str) -> None:
        """Count an image, by its name in the folder."""
        self.reasons[name] = reason

    def check_any(self, total: int) -> None:
        """Raise NoImages if none of `total` images was read."""
        if self.reasons and len(self.reasons) >= total:
            raise NoImages(
                f"none of the {total} images can be read",
                expected="at least one jpg, png or bmp picture",
                received=self._first(),
                hint="open one of them in a viewer: it may be cut short, or not be what its name says",
            )

    def check_share(self, total: int) -> None:
        """Raise UnreadableImage if more than UNREADABLE_SHARE of `total` images were not read."""
        if len(self.reasons) > UNREADABLE_SHARE * total:
            raise UnreadableImage(
                f"{len(self.reasons)} of {total} images cannot be read",
                expected=f"at most {UNREADABLE_SHARE:.0%}, which are passed over",
                received=self._first(),
                hint="remove the files or replace them by readable ones",
            )

    def _first(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:3])


def sampled(data: VerificationData, count: int | None) -> VerificationData:
    """`count` of the images, the same each time; all of them where there are no more, or for None."""
    if count is None or count >= len(data.samples):
        return data
    chosen = sorted(random.Random(0).sample(range(len(data.samples)), count))  # noqa: S311 - no secret
    return replace(data, samples=tuple(data.samples[index] for index in chosen))


def check_size(sample: Sample, image: Uint8Array) -> None:
    """Raise InvalidAnnotations where the image [h, w, 3] is not of the size that its annotations were made for."""
    if sample.size_px is not None:
        height, width = image.shape[:2]
        check_image_size(sample.name, sample.size_px, (height, width))


def read_data(images: Path, annotations: Path | None, names: Mapping[int, str], *, task: Task) -> VerificationData:
    """The folder's images with what is known of them. `names` are the model's classes, `task` what its answers are.

    Without annotations the first folder level below what all images share may be the classes: by the model's names, or
    in torchvision's `ImageFolder` order where the model names none and the counts are equal. A model of other answers
    ("raw") takes the annotations' classes as they are, to draw a balanced sample.

    Raises NoImages, InvalidAnnotations.
    """
    files = list_images(images)
    if annotations is None:
        return _with_folders(images, files, names, task)
    data = _with_coco(read_coco(annotations, images), names, task)
    left_out = len(set(files) - {sample.path for sample in data.samples})
    if left_out:
        text = f"{left_out} images of the folder are not in {annotations.name} and were left out"
        data = replace(data, warnings=(*data.warnings, text))
    return data


def _with_folders(folder: Path, files: Sequence[Path], names: Mapping[int, str], task: Task) -> VerificationData:
    parts = _below_what_they_share([file.relative_to(folder).parts for file in files], frozenset(names.values()))
    tops = [path[0] if len(path) > 1 else "" for path in parts]
    folders = sorted(set(tops) - {""})
    class_of = _class_of_folder(folders, names)
    samples = []
    for file, top in zip(files, tops, strict=True):
        index = class_of.get(top)
        classes = frozenset[int]() if index is None else frozenset({index})
        label = index if task == "classes" else None
        samples.append(Sample(file, file.relative_to(folder).as_posix(), classes, label))
    warnings = []
    if folders and not class_of:
        warnings.append(
            f"the folders {_listed(folders)} are not the model's classes: their images were taken as unlabelled"
        )
    if class_of and "" in tops:
        warnings.append(f"{tops.count('')} images lie in no class's folder and have no label")
    return VerificationData(folder, tuple(samples), "folders" if class_of else "none", warnings=tuple(warnings))


def _below_what_they_share(parts: Sequence[tuple[str, ...]], known: frozenset[str]) -> Sequence[tuple[str, ...]]:
    """Paths without the folders that hold all of them and name no class: archives often wrap their files in one."""
    while len({path[0] for path in parts}) == 1 and all(len(path) > 1 for path in parts) and parts[0][0] not in known:
        parts = [path[1:] for path in parts]
    return parts


def _class_of_folder(folders: Sequence[str], names: Mapping[int, str]) -> dict[str, int]:
    """The model's class of each folder; empty where the folders are no classes."""
    class_of_name = _by_name(names)
    unknown = [folder for folder in folders if folder not in class_of_name]
    if not unknown:
        return {folder: class_of_name[folder] for folder in folders}
    if len(unknown) < len(folders):
        raise InvalidAnnotations(
            f"{len(unknown)} of {len(folders)} folders are not classes of the model: {_listed(unknown)}",
            expected=f"folders named as the model's {len(names)} classes: {_listed(names.values())}",
            received=f"{len(folders)} folders: {_listed(folders)}",
            hint="rename the folders, or take those out that are no classes",
        )
    in_order = len(folders) == len(names) and all(GENERIC_NAME.fullmatch(name) for name in names.values())
    return dict(zip(folders, sorted(names), strict=True)) if in_order else {}


def _with_coco(source: CocoData, names: Mapping[int, str], task: Task) -> VerificationData:
    content = content_of(source)
    entries = {int(entry["id"]): entry for entry in content["images"]}
    sizes = {image_id: _declared_size(source, entries[image_id]) for image_id in source.image_ids}
    annotations = _by_image(source, content)
    class_of, category_ids, warnings = _match_categories(source, content, annotations, names, task)
    if task == "boxes":
        _check_boxes(source, sizes, annotations)
        unsized = sum(size is None for size in sizes.values())
        if unsized:
            warnings += (f"boxes of {unsized} images could not be checked: the annotations have no width and height",)
    samples = []
    for image_id, file_name in zip(source.image_ids, source.file_names, strict=True):
        classes = frozenset(class_of[integer_of(source, one, "category_id")] for one in annotations[image_id])
        path = source.images / file_name
        samples.append(Sample(path, Path(file_name).as_posix(), classes, None, image_id, sizes[image_id]))
    if task == "classes":
        samples = _labelled(source, samples)
    if task != "boxes":
        return VerificationData(source.images, tuple(samples), "coco", None, warnings)
    unlabelled = frozenset(names).difference(*(sample.classes for sample in samples))
    if unlabelled:
        few = _listed(names[index] for index in sorted(unlabelled))
        text = f"no box of {len(unlabelled)} of the model's {len(names)} classes is labelled, so no mAP tells of them"
        warnings += (f"{text}: {few}",)
    coco = replace(source, category_ids=category_ids)
    return VerificationData(source.images, tuple(samples), "coco", coco, warnings, unlabelled)


def _declared_size(source: CocoData, entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) in px, None where the file does not say."""
    if not (entry.get("height") and entry.get("width")):
        return None
    return integer_of(source, entry, "height"), integer_of(source, entry, "width")


def _by_image(source: CocoData, content: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    """Every image's annotations, crowds left out as they are regions and no objects."""
    found: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in source.image_ids}
    strange = []
    for annotation in content["annotations"]:
        image_id = integer_of(source, annotation, "image_id")
        if image_id not in found:
            strange.append(image_id)
        elif not annotation.get("iscrowd"):
            found[image_id].append(annotation)
    if strange:
        raise InvalidAnnotations(
            f"{len(strange)} annotations are of images that {source.annotations.name} does not list",
            expected="every image_id among the images' ids",
            received=f"image_id {_listed(sorted(set(strange)))}",
        )
    return found


def _match_categories(
    source: CocoData,
    content: Mapping[str, Any],
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
    names: Mapping[int, str],
    task: Task,
) -> tuple[dict[int, int], tuple[int, ...], tuple[str, ...]]:
    """The class of each category that is used, the category of each class, and warnings.

    By name where the used categories' names are the model's. Else in the order of ids, where the counts are equal and
    no name contradicts it.
    """
    categories = names_of_categories(content)
    used = frozenset(integer_of(source, one, "category_id") for group in annotations.values() for one in group)
    _check_used(source, used, categories, task)
    if task == "raw":
        return {key: index for index, key in enumerate(source.category_ids)}, source.category_ids, ()
    class_of_name, id_of_name = _by_name(names), _by_name(categories)
    by_name = {key: class_of_name[name] for name, key in id_of_name.items() if name in class_of_name}
    if used <= by_name.keys():
        id_of_class = {index: key for key, index in by_name.items()}
        return by_name, tuple(id_of_class.get(index, -1 - index) for index in sorted(names)), ()
    if len(categories) == len(names):
        in_order = dict(zip(source.category_ids, sorted(names), strict=True))
        if by_name.items() <= in_order.items():
            text = "the annotations' categories are not named as the model's classes: they were taken in order of ids"
            return in_order, source.category_ids, (text,)
    unknown = [categories[key] or str(key) for key in sorted(used - by_name.keys())]
    raise InvalidAnnotations(
        f"{len(unknown)} of the annotations' categories are no class of the model: {_listed(unknown)}",
        expected=f"the model's {len(names)} classes: {_listed(names.values())}",
        received=f"{len(categories)} categories: {_listed(categories.values())}",
        hint="rename the categories, or give annotations of the model's own data",
    )


def _check_used(source: CocoData, used: frozenset[int], categories: Mapping[int, str], task: Task) -> None:
    unlisted = sorted(used - categories.keys())
    if unlisted:
        raise InvalidAnnotations(
            f"the annotations are of categories that {source.annotations.name} does not list",
            expected="every category_id among the categories' ids",
            received=f"category_id {_listed(unlisted)}",
        )
    if task == "boxes" and not used:
        raise InvalidAnnotations(
            f"{source.annotations.name} holds no box",
            expected="at least one annotation with a bbox that is no crowd",
            received=f"none on {len(source.image_ids)} images",
            hint="leave the annotations out: the two models' detections are then compared with each other",
        )


def _check_boxes(
    source: CocoData,
    sizes: Mapping[int, tuple[int, int] | None],
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
) -> None:
    wrong = []
    for image_id, group in annotations.items():
        for annotation in group:
            reason = _fault(corners_of(source, annotation), sizes[image_id])
            if reason:
                wrong.append(f"image {image_id}: {annotation['bbox']} {reason}")
    if wrong:
        raise InvalidAnnotations(
            f"{len(wrong)} boxes of {source.annotations.name} cannot be",
            expected=f"[x, y, width, height] in px with an area, inside of the image to {OUTSIDE_PX:g} px",
            received="; ".join(wrong[:3]),
            hint="give the annotations of these very images",
        )


def _fault(corners: tuple[float, float, float, float], size_px: tuple[int, int] | None) -> str:
    """What is wrong with a box of x1, y1, x2, y2 in px; "" where nothing is."""
    left, top, right, bottom = corners
    if right <= left or bottom <= top:
        return "has no area"
    if size_px is None:
        return ""
    height, width = size_px
    inside = min(left, top) >= -OUTSIDE_PX and right <= width + OUTSIDE_PX and bottom <= height + OUTSIDE_PX
    return "" if inside else f"is outside of {width} x {height} px"


def _labelled(source: CocoData, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the one class of each as its label, which is what a classifier answers."""
    others = [sample for sample in samples if len(sample.classes) != 1]
    if others:
        raise InvalidAnnotations(
            f"{source.annotations.name} is no labelling for a classifier",
            expected="annotations of exactly one category on every image",
            received=f"{len(others)} of {len(samples)} images have another number, "
            f"{others[0].name} has {len(others[0].classes)}",
            hint="give images of one object each, or folders named as the classes",
        )
    return [replace(sample, label=min(sample.classes)) for sample in samples]


def _by_name(names: Mapping[int, str]) -> dict[str, int]:
    """The key of each name. ImageNet calls two of its classes "crane": such a name stands for neither."""
    counts = Counter(names.values())
    return {name: index for index, name in names.items() if counts[name] == 1}


def _listed(items: Iterable[object]) -> str:
    """The first of them, for a message."""
    listed = [str(item) for item in items]
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
