"""Images from disk to the network's input. Which steps a model takes is its `preprocessing.Preprocessing`.

`tensor_from_image` is a detector's: it equals Ultralytics' predict on an ONNX file, `LetterBox(new_shape, auto=False)`
(grey 114 border, bilinear, centred), RGB, divided by 255, NCHW float32.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from ultralytics.utils import ASSETS

from app.toolkit.errors import NoImages, UnreadableImage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
BORDER_GREY = 114
LARGEST_PX = 178_956_970  # width x height; what Pillow refuses as a decompression bomb

# The two pictures that the ultralytics package carries: real images where a request brings none.
DEFAULT_IMAGES = (Path(ASSETS) / "bus.jpg", Path(ASSETS) / "zidane.jpg")

# JPEG's markers (ITU-T T.81, table B.1): the frame headers, and those that no length follows.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})

Uint8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LetterboxFrame:
    """How an image was placed: `scale` (network px per image px), border left and top in px, and its [H, W] in px.

    A crop's border is negative. `scale_y` is the vertical scale where it is another than the horizontal one.
    """

    scale: float
    left_px: int
    top_px: int
    image_size_px: tuple[int, int]
    scale_y: float | None = None

    def boxes_in_image(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Boxes [n, 4] xyxy, from network px to the image's own px, cut at its edges."""
        offset = np.array([self.left_px, self.top_px] * 2, dtype=np.float32)
        scale_y = self.scale if self.scale_y is None else self.scale_y
        scales = np.array([self.scale, scale_y] * 2, dtype=np.float32)
        height, width = self.image_size_px
        limits = np.array([width, height] * 2, dtype=np.float32)
        placed: Float32Array = np.clip((boxes_xyxy - offset) / scales, np.float32(0), limits)
        return placed


def list_images(folder: Path | str) -> list[Path]:
    """Every jpg, jpeg, png and bmp under a folder, in any case and depth, sorted.

    Left out are the `._` files that macOS puts beside each file of an archive. Raises NoImages where there is none.
    """
    named = (p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("._"))
    found = sorted(p for p in named if p.is_file())
    if not found:
        raise NoImages(
            "there is no image in the folder",
            expected=f"at least one file ending in {', '.join(sorted(IMAGE_SUFFIXES))}",
            received=str(folder),
            hint="name the folder that holds the pictures, or one above it",
        )
    return found


def sample_images(images: Sequence[Path], count: int, *, seed: int = 0) -> list[Path]:
    """`count` of the images (all, if there are fewer), the same for the same seed, in their first order."""
    if count >= len(images):
        return list(images)
    chosen = sorted(random.Random(seed).sample(range(len(images)), count))  # noqa: S311 - no secret
    return [images[index] for index in chosen]


def read_image(path: Path | str) -> Uint8Array:
    """An image as [H, W, 3] uint8 RGB, turned as its EXIF says. 16 bits become 8, CMYK becomes RGB, alpha is dropped.

    The content says what a file is, not its name. Raises UnreadableImage, also for a file that is cut short (OpenCV
    refuses it from memory; from disk it would fill it up with grey) and, undecoded, for more px than LARGEST_PX.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    size = _size_px(data)
    if size is None:
        raise _unreadable(path, f"{len(data)} bytes that are no picture of these kinds")
    width, height = size
    if width * height > LARGEST_PX:
        raise _unreadable(path, f"{width} x {height} px, more than {LARGEST_PX}")
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _unreadable(path, str(error)) from error
    if decoded is None:
        raise _unreadable(path, f"a picture of {width} x {height} px that is damaged or cut short")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded), dtype=np.uint8)


def _size_px(data: bytes) -> tuple[int, int] | None:
    """(width, height) in a picture's header, None for what is no JPEG, PNG or BMP.

    Read here, as Ultralytics replaces `PIL.Image.open` by one that may install packages when a file is no picture.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith(b"BM"):
        step = 2 if data[14:15] == b"\x0c" else 4  # OS/2's first header has 16-bit sizes
        height = int.from_bytes(data[18 + step : 18 + 2 * step], "little", signed=step == 4)
        return int.from_bytes(data[18 : 18 + step], "little"), abs(height)  # below zero: stored from the top
    return _jpeg_size_px(data) if data.startswith(b"\xff\xd8") else None


def _jpeg_size_px(data: bytes) -> tuple[int, int]:
    """From marker to marker as libjpeg goes, up to the frame's header; zeros where there is none."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        marker = data[at + 1] if at + 1 < len(data) else 0
        if marker in START_OF_FRAME:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
        else:
            at += 2 if marker in WITHOUT_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _unreadable(path: Path, received: str) -> UnreadableImage:
    return UnreadableImage(
        f"the image {path.name} cannot be read",
        expected="a jpg, png or bmp picture",
        received=received,
        hint="remove the file or replace it by a readable one",
    )


def letterbox(image: Uint8Array, input_size: tuple[int, int]) -> tuple[Uint8Array, LetterboxFrame]:
    """Scale an [h, w, C] image into [H, W], the aspect kept, a grey border around it.

    Rounding as in `ultralytics.data.augment.LetterBox`, so that the result is equal to it pixel by pixel.
    """
    height, width = image.shape[:2]
    scale = min(input_size[0] / height, input_size[1] / width)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    pad_x, pad_y = (input_size[1] - new_width) / 2, (input_size[0] - new_height) / 2
    if (new_width, new_height) != (width, height):
        resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        image = np.asarray(resized, dtype=np.uint8).reshape(new_height, new_width, -1)  # OpenCV drops a lone channel
    left, top = round(pad_x - 0.1), round(pad_y - 0.1)
    framed = np.full((*input_size, image.shape[2]), BORDER_GREY, dtype=np.uint8)
    framed[top : top + new_height, left : left + new_width] = image
    return framed, LetterboxFrame(scale, left, top, (height, width))


def tensor_from_image(
    image: Uint8Array, input_size: tuple[int, int], channels: int = 3
) -> tuple[Float32Array, LetterboxFrame]:
    """An [h, w, 3] uint8 RGB image as the network's [1, C, H, W] float32 in 0..1, and where it lies in it."""
    framed, frame = letterbox(in_channels(image, channels), input_size)
    return tensor_from_pixels(framed, channels), frame


def in_channels(image: Uint8Array, channels: int) -> Uint8Array:
    """An [h, w, 3] RGB image as it is; for one channel [h, w, 1], the luma that OpenCV computes."""
    if channels != 1:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[..., None]


def tensor_from_pixels(pixels: Uint8Array, channels: int) -> Float32Array:
    """[H, W, 3] or [H, W, 1] uint8 as [1, C, H, W] float32 in 0..1.

    Where the planes are fewer than the channels they are taken in turn (R, G, B, R, ...): such a network has bands that
    no photograph has, and a parity proof only needs inputs with an image's statistics.
    """
    planes = cv2.split(pixels)
    tensor = np.empty((1, channels, *pixels.shape[:2]), dtype=np.float32)
    for index in range(channels):  # one pass from uint8 to float32, half the time of transposing and then dividing
        np.divide(planes[index % len(planes)], np.float32(255), out=tensor[0, index])
    return tensor
