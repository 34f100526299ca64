"""Images become tensors exactly as Ultralytics makes them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.augment import LetterBox
from ultralytics.models.yolo.detect import DetectionPredictor

from app.toolkit.errors import NoImages, UnreadableImage
from app.toolkit.images import (
    DEFAULT_IMAGES,
    letterbox,
    list_images,
    read_image,
    sample_images,
    tensor_from_image,
)

SIZES = [(640, 640), (320, 640), (640, 416), (96, 64)]
SHAPES = [(1080, 810), (720, 1280), (640, 640), (33, 57), (5, 1000), (641, 639), (100, 100)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_equals_ultralytics_pixel_by_pixel(size: tuple[int, int], shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours, _ = letterbox(image, size)
    assert np.array_equal(ours, LetterBox(size, auto=False)(image=image.copy()))


@pytest.mark.parametrize("path", DEFAULT_IMAGES, ids=lambda path: path.name)
def test_the_tensor_equals_the_predictors_own(path: Path) -> None:
    predictor = DetectionPredictor(overrides={"imgsz": 640, "rect": False, "device": "cpu", "save": False})
    predictor.imgsz = (640, 640)
    predictor.device = torch.device("cpu")
    predictor.model = torch.nn.Module()
    predictor.model.format, predictor.model.fp16, predictor.model.stride = "onnx", False, 32
    theirs = predictor.preprocess([cv2.imread(str(path))]).numpy()
    ours, _ = tensor_from_image(read_image(path), (640, 640))
    assert ours.dtype == np.float32 and ours.shape == (1, 3, 640, 640)
    assert np.abs(ours - theirs).max() < 1e-7


def test_boxes_go_back_to_where_they_were() -> None:
    image = np.zeros((400, 1000, 3), np.uint8)
    _, frame = letterbox(image, (640, 640))
    assert (frame.left_px, frame.top_px, frame.scale) == (0, 192, 0.64)
    inside = frame.boxes_in_image(np.array([[64, 256, 128, 320], [-50, 0, 9999, 9999]], np.float32))
    assert np.allclose(inside, [[100, 100, 200, 200], [0, 0, 1000, 400]], atol=1e-3)


def test_one_channel_is_luma_and_many_channels_repeat_the_colours() -> None:
    image = read_image(DEFAULT_IMAGES[0])
    grey, _ = tensor_from_image(image, (64, 64), 1)
    five, _ = tensor_from_image(image, (64, 64), 5)
    colour, _ = tensor_from_image(image, (64, 64))
    assert grey.shape == (1, 1, 64, 64)
    assert np.array_equal(five[:, 3:], colour[:, :2])


def test_a_folder_is_listed_in_any_case_and_depth_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/c.Bmp", "d.jpeg", "notes.txt", "e.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == [
        "a.png",
        "b.JPG",
        "d.jpeg",
        "deep/c.Bmp",
    ]


def test_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NoImages, match=r"\.bmp, \.jpeg, \.jpg, \.png"):
        list_images(tmp_path)


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    images = [Path(f"{index}.jpg") for index in range(100)]
    assert sample_images(images, 8, seed=1) == sample_images(images, 8, seed=1) != sample_images(images, 8, seed=2)
    assert sample_images(images, 8) == sorted(sample_images(images, 8), key=images.index)
    assert sample_images(images, 1000) == images


@pytest.mark.parametrize("content", [b"", b"not a picture", DEFAULT_IMAGES[0].read_bytes()[:100]])
def test_a_file_that_is_no_picture_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"bad\.jpg"):
        read_image(tmp_path / "bad.jpg")


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
