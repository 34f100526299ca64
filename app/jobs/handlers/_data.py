"""Labelled images, as a request names them, for the toolkit."""

from __future__ import annotations

import random
from dataclasses import replace

from app.jobs.context import JobContext, JobFailed
from app.toolkit.coco import CocoData, read_coco


def coco_data(context: JobContext, name: str) -> CocoData | None:
    """The images and annotations of a DataSource parameter, of which `sample` are drawn by a fixed seed.

    None where the request gave none. Raises JobFailed for images without annotations, InvalidAnnotations.
    """
    given, annotations = context.images(name), context.annotations(name)
    if given is None:
        return None
    if annotations is None:
        raise JobFailed("INVALID_ANNOTATIONS", f"{name}: there are images, and no annotations", expected="COCO's JSON")
    folder, sample = given
    data = read_coco(annotations, folder)
    if sample is None or sample >= len(data.image_ids):
        return data
    chosen = sorted(random.Random(0).sample(range(len(data.image_ids)), sample))  # noqa: S311 - the same each time
    return replace(
        data,
        image_ids=tuple(data.image_ids[index] for index in chosen),
        file_names=tuple(data.file_names[index] for index in chosen),
    )
