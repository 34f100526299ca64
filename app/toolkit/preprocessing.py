"""How a model's images become its input, as a value: it is written into exported files, read back and compared.

- "letterbox" keeps the aspect and fills with grey: `images.letterbox`, which equals Ultralytics' detectors.
- "center_crop" is the evaluation transform of timm 1.0 and torchvision: the shorter side to floor(size / crop_pct) with
  Pillow's antialiased resampling, then the centre. At a square size it also equals Ultralytics' classifiers (8.4.190).
- "stretch" is a plain `cv2.resize` to the input's size, without antialiasing, as many applications do.
- "stretch_antialiased" is Pillow's resize to the input's size, as `RTDetrImageProcessor` of transformers does it. The
  plain one is up to 74/255 away from it on a photograph.

All divide by 255 and then normalise: (x - mean) / std, in the order of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import cv2
import numpy as np
from PIL import Image

from app.toolkit.errors import InvalidPreprocessing
from app.toolkit.images import (
    Float32Array,
    LetterboxFrame,
    Uint8Array,
    in_channels,
    letterbox,
    tensor_from_pixels,
)

Resize = Literal["letterbox", "center_crop", "stretch", "stretch_antialiased"]
ChannelOrder = Literal["RGB", "BGR"]
Interpolation = Literal["bilinear", "bicubic"]

CV2_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
PILLOW_INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WORDS: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "channel_order": get_args(ChannelOrder),
    "interpolation": get_args(Interpolation),
}


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an RGB image to a tensor; the defaults are a YOLO detector's.

    `mean` and `std` are in units of 0..1, one number for each channel, or as many as are taken in turn. `crop_pct`
    belongs to "center_crop": the side of the crop as a part of the resized image's, 0 < crop_pct <= 1. A letterbox is
    always bilinear. Raises InvalidPreprocessing for anything else.
    """

    resize: Resize = "letterbox"
    channel_order: ChannelOrder = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name, holds, expected in self._rules():
            if not holds:
                value = getattr(self, name)
                raise InvalidPreprocessing(
                    f"the preprocessing's {name} cannot be used",
                    expected=expected,
                    received=repr(list(value) if isinstance(value, tuple) else value),
                    hint=f"correct {name}, or leave it out",
                )

    def apply(
        self, image: Uint8Array, input_size: tuple[int, int], channels: int = 3
    ) -> tuple[Float32Array, LetterboxFrame]:
        """An [h, w, 3] uint8 RGB image as [1, C, H, W] float32, and where it lies in it. `input_size` is (H, W) in px.

        Other channels than 3 as in `images.tensor_from_pixels`; one channel is the luma.
        """
        image = in_channels(image, channels)
        pixels, frame = self._placed(image, input_size)
        if self.channel_order == "BGR":
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        tensor = tensor_from_pixels(pixels, channels)
        if any(self.mean) or any(number != 1 for number in self.std):
            for index in range(channels):
                tensor[0, index] -= np.float32(self.mean[index % len(self.mean)])
                tensor[0, index] /= np.float32(self.std[index % len(self.std)])
        return tensor, frame

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Preprocessing:
        """What `as_dict` gave; a word left out has its default. Raises InvalidPreprocessing."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, entries)) - set(known))
        if unknown:
            raise InvalidPreprocessing(
                f"preprocessing has no {', '.join(unknown)}",
                expected=f"words of {', '.join(known)}",
                received=", ".join(unknown),
                hint="leave it out, or correct its spelling",
            )
        words: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in entries.items()}
        return cls(**words)

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """(field, whether it holds, what was expected); each may rely on those before it."""
        for name, words in WORDS.items():
            yield name, getattr(self, name) in words, f"one of {', '.join(words)}"
        for name in ("mean", "std"):
            yield name, _are_numbers(getattr(self, name)), "a list of numbers, one for each channel"
        yield "std", len(self.std) == len(self.mean), f"{len(self.mean)} numbers, as many as mean has"
        yield "std", min(self.std) > 0, "numbers above 0"
        yield "crop_pct", _are_numbers((self.crop_pct,)) and 0 < self.crop_pct <= 1, "a number above 0, up to 1"
        yield "crop_pct", self.crop_pct == 1 or self.resize == "center_crop", f"1, as a {self.resize} cuts nothing off"
        bilinear = self.interpolation == "bilinear" or self.resize != "letterbox"
        yield "interpolation", bilinear, "bilinear, as a letterbox knows no other"

    def _placed(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Uint8Array, LetterboxFrame]:
        if self.resize == "letterbox":
            return letterbox(image, input_size)
        if self.resize == "center_crop":
            return _center_crop(image, input_size, self.crop_pct, self.interpolation)
        (height, width), (to_height, to_width) = image.shape[:2], input_size
        frame = LetterboxFrame(to_width / width, 0, 0, (height, width), to_height / height)
        stretched = _resized if self.resize == "stretch" else _resized_antialiased
        return stretched(image, input_size, self.interpolation), frame


def _resized(image: Uint8Array, to_size: tuple[int, int], interpolation: Interpolation) -> Uint8Array:
    resized = cv2.resize(image, (to_size[1], to_size[0]), interpolation=CV2_INTERPOLATION[interpolation])
    return np.asarray(resized, dtype=np.uint8).reshape(*to_size, -1)  # OpenCV drops a lone channel


def _resized_antialiased(image: Uint8Array, to_size: tuple[int, int], interpolation: Interpolation) -> Uint8Array:
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = picture.resize((to_size[1], to_size[0]), PILLOW_INTERPOLATION[interpolation])
    return np.asarray(resized, dtype=np.uint8).reshape(*to_size, -1)


def _center_crop(
    image: Uint8Array, input_size: tuple[int, int], crop_pct: float, interpolation: Interpolation
) -> tuple[Uint8Array, LetterboxFrame]:
    """As `timm.data.create_transform(..., is_training=False)`: the same roundings, so the same pixels."""
    height, width = image.shape[:2]
    resized_height, resized_width = _covering((height, width), input_size, crop_pct)
    pixels = _resized_antialiased(image, (resized_height, resized_width), interpolation)
    top, left = round((resized_height - input_size[0]) / 2), round((resized_width - input_size[1]) / 2)
    cropped = np.ascontiguousarray(pixels[top : top + input_size[0], left : left + input_size[1]])
    return cropped, LetterboxFrame(resized_width / width, -left, -top, (height, width), resized_height / height)


def _covering(image_size: tuple[int, int], input_size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """The (H, W) to which an image is resized before the crop.

    A square takes torchvision's `Resize`, which cuts the longer side's fraction off; anything else takes timm's
    `ResizeKeepRatio`, which rounds it.
    """
    (height, width), target = image_size, [math.floor(side / crop_pct) for side in input_size]
    if target[0] == target[1]:
        if width <= height:
            return int(target[0] * height / width), target[0]
        return target[0], int(target[0] * width / height)
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)


def _are_numbers(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
