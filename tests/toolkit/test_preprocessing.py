"""Images become tensors as the libraries that train the models make them, and boxes find their way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from ultralytics.data.augment import classify_transforms

from app.toolkit.errors import InvalidPreprocessing
from app.toolkit.images import DEFAULT_IMAGES, Uint8Array, read_image, tensor_from_image
from app.toolkit.preprocessing import Preprocessing, Resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(1080, 810), (720, 1280), (96, 96), (33, 57), (641, 640), (60, 2000)]
RESIZES: tuple[Resize, ...] = ("letterbox", "center_crop", "stretch", "stretch_antialiased")


def noise(*shape: int) -> Uint8Array:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_default_is_the_detectors_letterbox_bit_by_bit(channels: int) -> None:
    image = read_image(DEFAULT_IMAGES[0])
    tensor, frame = Preprocessing().apply(image, (320, 416), channels)
    wanted, wanted_frame = tensor_from_image(image, (320, 416), channels)
    assert np.array_equal(tensor, wanted) and tensor.dtype == np.float32
    assert frame == wanted_frame


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(96, 96), (224, 224), (128, 160)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_the_centre_crop_equals_timms_evaluation_transform(
    shape: tuple[int, int], size: tuple[int, int], interpolation: Any, crop_pct: float
) -> None:
    image = noise(*shape)
    theirs = create_transform(
        (3, *size), is_training=False, interpolation=interpolation, mean=MEAN, std=STD, crop_pct=crop_pct
    )
    ours = Preprocessing("center_crop", mean=MEAN, std=STD, crop_pct=crop_pct, interpolation=interpolation)
    tensor, _ = ours.apply(image, size)
    wanted = theirs(Image.fromarray(image))
    assert isinstance(wanted, torch.Tensor)
    assert tensor.shape == (1, 3, *size)
    assert np.abs(tensor[0] - wanted.numpy()).max() <= 1e-6


@pytest.mark.parametrize("path", DEFAULT_IMAGES, ids=lambda path: path.name)
def test_the_bilinear_centre_crop_equals_ultralytics_classifiers(path: Path) -> None:
    image = read_image(path)
    tensor, _ = Preprocessing("center_crop").apply(image, (224, 224))
    assert np.abs(tensor[0] - classify_transforms(224)(Image.fromarray(image)).numpy()).max() <= 1e-6


@pytest.mark.parametrize(("word", "flag"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
def test_stretching_is_opencvs_resize(word: Any, flag: int) -> None:
    image = noise(123, 77)
    tensor, _ = Preprocessing("stretch", interpolation=word).apply(image, (64, 96))
    wanted = np.asarray(cv2.resize(image, (96, 64), interpolation=flag), dtype=np.float32)
    assert np.abs(tensor[0].transpose(1, 2, 0) * 255 - wanted).max() < 1e-4


@pytest.mark.parametrize("resize", RESIZES)
def test_bgr_turns_the_channels_and_the_mean_is_in_their_order(resize: Resize) -> None:
    image = noise(50, 60)
    rgb, _ = Preprocessing(resize).apply(image, (32, 32))
    bgr, _ = Preprocessing(resize, "BGR", mean=MEAN, std=STD).apply(image, (32, 32))
    blue = (rgb[0, 2] - np.float32(MEAN[0])) / np.float32(STD[0])
    assert np.array_equal(bgr[0, 0], blue)


@pytest.mark.parametrize("resize", RESIZES)
def test_one_channel_is_the_luma(resize: Resize) -> None:
    image = np.full((50, 60, 3), (255, 0, 0), np.uint8)
    tensor, _ = Preprocessing(resize, mean=(0.0,), std=(0.5,)).apply(image, (32, 32), 1)
    assert tensor.shape == (1, 1, 32, 32)
    assert np.isclose(tensor[0, 0, 16, 16], 2 * 76 / 255)


@pytest.mark.parametrize(
    "preprocessing", [Preprocessing(r) for r in RESIZES] + [Preprocessing("center_crop", crop_pct=0.8)]
)
@pytest.mark.parametrize("shape", [(400, 1000), (900, 500), (300, 300)])
def test_boxes_go_back_to_where_they_were(preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    height, width = shape
    box = np.array([width // 2 - 60, height // 2 - 40, width // 2 + 50, height // 2 + 70])
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    tensor, frame = preprocessing.apply(image, (320, 256))
    rows, columns = np.nonzero(tensor[0, 0] > 0.7)  # the letterbox's border is 0.45
    found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    assert np.abs(frame.boxes_in_image(found) - box).max() <= 2 / min(frame.scale, frame.scale_y or frame.scale)


def test_boxes_are_cut_at_the_images_edges() -> None:
    _, frame = Preprocessing("center_crop", crop_pct=0.5).apply(noise(100, 200), (50, 50))
    assert frame.boxes_in_image(np.array([[-999, -999, 999, 999]], np.float32)).tolist() == [[0, 0, 200, 100]]


def test_it_goes_through_json_unchanged() -> None:
    whole = Preprocessing("center_crop", "BGR", MEAN, STD, 0.875, "bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole
    assert Preprocessing.from_dict({"resize": "stretch"}) == Preprocessing("stretch")
    assert Preprocessing.from_dict({}) == Preprocessing()


@pytest.mark.parametrize(
    ("entries", "expected", "received"),
    [
        ({"resize": "crop"}, "one of letterbox, center_crop, stretch", "'crop'"),
        ({"resize": ["letterbox"]}, "one of letterbox", "['letterbox']"),
        ({"channel_order": "rgb"}, "one of RGB, BGR", "'rgb'"),
        ({"interpolation": "lanczos"}, "one of bilinear, bicubic", "'lanczos'"),
        ({"mean": 0.5}, "a list of numbers", "0.5"),
        ({"mean": []}, "a list of numbers", "[]"),
        ({"mean": [0.5, float("nan"), 0.5]}, "a list of numbers", "[0.5, nan, 0.5]"),
        ({"mean": [0.5, True, 0.5]}, "a list of numbers", "[0.5, True, 0.5]"),
        ({"std": [0.5]}, "3 numbers, as many as mean has", "[0.5]"),
        ({"std": [1, 0, 1]}, "numbers above 0", "[1, 0, 1]"),
        ({"resize": "center_crop", "crop_pct": 0}, "above 0, up to 1", "0"),
        ({"resize": "center_crop", "crop_pct": 1.1}, "above 0, up to 1", "1.1"),
        ({"resize": "center_crop", "crop_pct": "0.9"}, "above 0, up to 1", "'0.9'"),
        ({"resize": "stretch", "crop_pct": 0.9}, "a stretch cuts nothing off", "0.9"),
        ({"interpolation": "bicubic"}, "a letterbox knows no other", "'bicubic'"),
        ({"normalise": True, "resize": "stretch"}, "words of resize, channel_order, mean", "normalise"),
    ],
)
def test_what_cannot_be_is_refused_in_words(entries: dict[str, Any], expected: str, received: str) -> None:
    with pytest.raises(InvalidPreprocessing) as caught:
        Preprocessing.from_dict(entries)
    assert expected in caught.value.expected
    assert caught.value.received == received
    assert caught.value.hint
