"""Calibration tensors a second: `tensors` with a thread for each core, against a plain loop of PIL and NumPy.

    python -m benchmarks.calibration_images [--images 64] [--rounds 9]

Half of the JPEGs are 1280 x 720 px, half 640 x 640, cut from Ultralytics' two photographs; the tensors are 640 x 640.
The plain loop decodes with PIL, scales with `cv2.resize` (PIL's own filters make other pixels), and frames, transposes
and divides with NumPy. The two take turns, in changing order; the first round is warm-up.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from app.toolkit.calibration.images import choose_images, tensors
from app.toolkit.images import DEFAULT_IMAGES, Float32Array, Uint8Array, tensor_from_image

SIZE = (640, 640)
SHAPES = ((720, 1280), (640, 640))


def draw(folder: Path, count: int) -> list[Path]:
    """JPEGs of quality 90: windows of the photographs, each another one and some mirrored."""
    rng = random.Random(0)
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in DEFAULT_IMAGES]
    paths = []
    for index in range(count):
        photograph, (height, width) = photographs[index // 2 % 2], SHAPES[index % 2]
        side = rng.uniform(0.7, 1.0)
        high, wide = int(photograph.shape[0] * side), int(photograph.shape[1] * side)
        top, left = rng.randint(0, photograph.shape[0] - high), rng.randint(0, photograph.shape[1] - wide)
        window = photograph[top : top + high, left : left + wide][:, :: rng.choice((1, -1))]
        paths.append(folder / f"{index:04d}.jpg")
        Image.fromarray(np.ascontiguousarray(window)).resize((width, height)).save(paths[-1], quality=90)
    return paths


def plain(paths: Sequence[Path]) -> Iterator[Float32Array]:
    """The same tensors as one would write them down."""
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        height, width = image.shape[:2]
        scale = min(SIZE[0] / height, SIZE[1] / width)
        high, wide = round(height * scale), round(width * scale)
        top, left = (SIZE[0] - high) // 2, (SIZE[1] - wide) // 2
        framed = np.full((*SIZE, 3), 114, dtype=np.uint8)
        framed[top : top + high, left : left + wide] = cv2.resize(image, (wide, high), interpolation=cv2.INTER_LINEAR)
        yield framed.transpose(2, 0, 1)[None].astype(np.float32) / 255


def preprocess(image: Uint8Array) -> Float32Array:
    """The Ultralytics adapter's."""
    return tensor_from_image(image, SIZE)[0]


def images_per_second(stream: Iterator[Float32Array], count: int) -> float:
    """Take the stream to its end."""
    begun = time.perf_counter()
    assert sum(len(batch) for batch in stream) == count
    return count / (time.perf_counter() - begun)


def main() -> None:
    """Compare the tensors, alternate the two, print images a second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = draw(Path(name), options.images)
        pairs = zip(tensors(paths, preprocess), plain(paths), strict=True)
        difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
        begun = time.perf_counter()
        choose_images(name, count=options.images)
        choosing = options.images / (time.perf_counter() - begun)
        own: list[float] = []
        loop: list[float] = []
        for number in range(options.rounds + 1):
            turns = [(lambda: tensors(paths, preprocess), own), (lambda: plain(paths), loop)]
            for stream, seen in turns if number % 2 == 0 else reversed(turns):
                seen.append(images_per_second(stream(), options.images))
    own, loop = own[1:], loop[1:]
    ratios = [a / b for a, b in zip(own, loop, strict=True)]
    print(f"{len(os.sched_getaffinity(0))} cores, {options.images} JPEGs, {options.rounds} rounds of each in turn")
    print(f"tensors         {statistics.median(own):.0f} images/s  ({min(own):.0f} to {max(own):.0f})")
    print(f"PIL and NumPy   {statistics.median(loop):.0f} images/s  ({min(loop):.0f} to {max(loop):.0f})")
    print(f"ratio           {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"difference      {difference:.1e} at most, of 0..1 ({difference * 255:.2f} grey levels)")
    print(f"choose_images   {choosing:.0f} images/s, once")


if __name__ == "__main__":
    main()
