"""Which images INT8 is calibrated with, and their stream of tensors.

`choose_images` decodes what it takes, to know that it can be read and what it shows, and keeps no pixel. `tensors`
decodes again: a decoded image costs about 2 ms, against some 50 ms that the network then takes for it, while 500
tensors of 640 x 640 kept in memory would be 2.3 GiB.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from app.toolkit.calibration.looks import Looks, looks_like
from app.toolkit.errors import NoImages, UnreadableImage
from app.toolkit.images import Float32Array, Uint8Array, list_images, read_image

Preprocess = Callable[[Uint8Array], Float32Array]
"""The model's own: [h, w, 3] uint8 RGB to [1, C, H, W] float32. Threads call it at once."""

NAMED = 20  # unreadable files that a record names; all are counted

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Unreadable:
    """A file that is no picture, by its path in the folder, and what it is."""

    name: str
    reason: str


@dataclass(frozen=True)
class CalibrationImages:
    """What was chosen from a folder. No image of `held_out` has the content of one of `calibration`.

    `digests` are the SHA-256 of the calibration images' files. `unreadable` holds what was met until enough was found.
    """

    folder: Path
    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]
    asked: int
    digests: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()
    warnings: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the calibration images' contents in their order: the key of what was measured on them."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "asked": self.asked,
            "used": len(self.calibration),
            "held_out": len(self.held_out),
            "unreadable": {
                "count": len(self.unreadable),
                "files": [vars(one) for one in self.unreadable[:NAMED]],
            },
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Seen:
    """One file, decoded and let go. `reason` is why it could not be."""

    path: Path
    digest: str = ""
    looks: Looks = "picture"
    reason: str = ""


@dataclass
class _Found:
    """What a walk through the folder met."""

    readable: list[_Seen] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    copies: int = 0


def choose_images(
    folder: Path | str, *, count: int, held_out: int = 0, seed: int = 0, workers: int | None = None
) -> CalibrationImages:
    """`count` images to calibrate with and `held_out` others to judge the result on, the same for the same seed.

    The folder's images are walked in a random order until enough can be read; copies of one already met are passed
    over. Where there are too few for both, a fifth of them (rounded up, no more than asked) is held out, yet a lone
    image is calibrated with. Raises NoImages where there is none, or none that can be read.
    """
    folder = Path(folder)
    files = list_images(folder)
    order = random.Random(seed).sample(files, len(files))  # noqa: S311 - no secret
    found = _walk(folder, order, count + held_out, workers)
    if not found.readable:
        raise NoImages(
            f"none of the folder's {len(files)} images can be read",
            expected="at least one jpg, png or bmp picture",
            received="; ".join(f"{one.name}: {one.reason}" for one in found.unreadable[:3]),
        )
    used = _share(len(found.readable), count, held_out)
    calibration, kept = found.readable[:used], found.readable[used:][:held_out]
    return CalibrationImages(
        folder=folder,
        calibration=tuple(one.path for one in calibration),
        held_out=tuple(one.path for one in kept),
        asked=count,
        digests=tuple(one.digest for one in calibration),
        unreadable=tuple(found.unreadable),
        warnings=tuple(_warnings(calibration, count, len(kept), held_out, found)),
    )


def _share(readable: int, count: int, held_out: int) -> int:
    """How many of the readable images calibrate: as asked, or as many as leave a fifth to be held out."""
    kept = min(held_out, readable - max(1, 4 * readable // 5))
    return min(count, readable - kept)


def _walk(folder: Path, order: Sequence[Path], wanted: int, workers: int | None) -> _Found:
    found = _Found()
    met: set[str] = set()
    with closing(_in_order(_look_at, order, workers)) as looked_at:
        for seen in looked_at:
            if seen.reason:
                found.unreadable.append(Unreadable(seen.path.relative_to(folder).as_posix(), seen.reason))
            elif seen.digest in met:
                found.copies += 1
            else:
                met.add(seen.digest)
                found.readable.append(seen)
            if len(found.readable) >= wanted:
                break
    return found


def _look_at(path: Path) -> _Seen:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return _Seen(path, reason=error.received)
    return _Seen(path, hashlib.sha256(path.read_bytes()).hexdigest(), looks_like(image))


def _warnings(calibration: Sequence[_Seen], count: int, kept: int, held_out: int, found: _Found) -> Iterator[str]:
    used = len(calibration)
    if used < count or kept < held_out:
        asked = f"{count} calibration images" + (f" and {held_out} held out" if held_out else "")
        have = f"{used}" + (f" and {kept}" if held_out else "")
        yield f"fewer images than asked: {asked} were asked for, the folder gave {have}"
    looks = Counter(one.looks for one in calibration)
    if 2 * (looks["noise"] + looks["constant"]) >= used:
        yield (
            f"of {used} calibration images {looks['noise']} are random noise and {looks['constant']} are of one colour:"
            " ranges measured on them are not those of pictures; calibrate with images like those the model will see"
        )
    if found.copies:
        yield f"{found.copies} files are copies of images already taken and were passed over"


def tensors(
    images: Sequence[Path], preprocess: Preprocess, *, batch_size: int = 1, workers: int | None = None
) -> Iterator[Float32Array]:
    """The images as batches [batch_size, C, H, W] float32, in order, decoded and preprocessed in `workers` threads.

    The last batch is filled up from the first images, as a network of a fixed batch size takes no smaller one. Held at
    once: the batch being filled, and two images for each worker (one for each core where None is given).
    Raises UnreadableImage.
    """

    def tensor(path: Path) -> Float32Array:
        return preprocess(read_image(path))

    batches = -(-len(images) // batch_size)
    filled = itertools.islice(itertools.cycle(images), batches * batch_size)
    with closing(_in_order(tensor, filled, workers)) as made:
        if batch_size == 1:
            yield from made
            return
        for first in made:
            batch = np.empty((batch_size, *first.shape[1:]), dtype=np.float32)
            batch[0] = first[0]
            for index in range(1, batch_size):  # copied as they come: no second copy of the batch is held
                batch[index] = next(made)[0]
            yield batch


def _in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None
) -> Generator[Result, None, None]:
    """The work of each item, in the items' order, done by threads that run at most two items each ahead.

    Threads, as OpenCV, NumPy and SHA-256 let go of Python's lock. Closing the iterator drops what has not begun.
    """
    threads = workers or len(os.sched_getaffinity(0))
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
