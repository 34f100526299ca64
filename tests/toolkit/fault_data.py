"""Pictures on which faults are looked for: scenes of many sizes with COCO labels, crops in class folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from tests.toolkit.scenes import ASSETS


def make_pool(folder: Path, *, scenes: int, crops_each: int, seed: int) -> Path:
    """Scenes (`images`, `instances.json`) and crops of 96 x 96 px (`crops/<class>`), in the folder, which is returned.

    Each scene is cut along one side as far as every pill stays whole, so that few are square.
    """
    counts = ["--images", str(scenes), "--crops-each", str(crops_each), "--size", "640", "--seed", str(seed)]
    subprocess.run([sys.executable, str(ASSETS / "make_pills.py"), str(folder), *counts], check=True)
    _cut(folder, np.random.default_rng(seed))
    return folder


def _cut(folder: Path, rng: np.random.Generator) -> None:
    target = folder / "instances.json"
    content = json.loads(target.read_text())
    for image in content["images"]:
        boxes = [one["bbox"] for one in content["annotations"] if one["image_id"] == image["id"]]
        axis = int(rng.integers(2))  # 0 cuts left and right
        first = int(rng.integers(min((box[axis] for box in boxes), default=200) + 1))
        last = int(rng.integers(max((box[axis] + box[axis + 2] for box in boxes), default=440), 641))
        path = folder / "images" / image["file_name"]
        whole = cv2.imread(str(path))
        assert whole is not None
        part = whole[:, first:last] if axis == 0 else whole[first:last]
        cv2.imwrite(str(path), part, [cv2.IMWRITE_JPEG_QUALITY, 95])
        image["height"], image["width"] = part.shape[:2]
        for box in boxes:
            box[axis] -= first
    target.write_text(json.dumps(content))


def some_scenes(pool: Path, target: Path, count: int, rng: np.random.Generator) -> Path:
    """COCO annotations of `count` of the pool's scenes, at the target."""
    content = json.loads((pool / "instances.json").read_text())
    drawn = sorted(rng.choice(len(content["images"]), count, replace=False).tolist())
    images = [content["images"][index] for index in drawn]
    kept = {image["id"] for image in images}
    boxes = [one for one in content["annotations"] if one["image_id"] in kept]
    target.write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    return target


def some_crops(pool: Path, target: Path, each: int, rng: np.random.Generator) -> Path:
    """A folder with `each` of the pool's crops of every class."""
    for folder in sorted((pool / "crops").iterdir()):
        (target / folder.name).mkdir(parents=True)
        crops = sorted(folder.iterdir())
        for index in rng.choice(len(crops), each, replace=False).tolist():
            os.link(crops[index], target / folder.name / crops[index].name)
    return target
