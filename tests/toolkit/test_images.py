"""Images become tensors exactly as Ultralytics makes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics.data.augment import LetterBox
from ultralytics.models.yolo.detect import DetectionPredictor

from app.toolkit.errors import NoImages, UnreadableImage
from app.toolkit.images import (
    DEFAULT_IMAGES,
    Uint8Array,
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
    for name in ("b.JPG", "a.png", "deep/c.Bmp", "d.jpeg", "notes.txt", "e.gif", "__MACOSX/._a.png"):
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


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8", b"BM", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"bad\.jpg"):
        read_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize("left", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_a_picture_that_is_cut_short_is_not_filled_up(suffix: str, left: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photograph()).save(path)
    assert read_image(path).shape == photograph().shape
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(UnreadableImage, match="damaged or cut short"):
        read_image(path)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def photograph() -> Uint8Array:
    return read_image(DEFAULT_IMAGES[0])


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_a_picture_is_turned_as_its_exif_says_and_read_whatever_its_name(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(photograph()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "turned.jpg").rename(tmp_path / f"turned.{suffix}")
    seen = read_image(tmp_path / f"turned.{suffix}")
    assert np.abs(seen.astype(int) - np.rot90(photograph(), -1)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_pictures_without_loss_are_read_as_pillow_reads_them(mode: str, suffix: str, tmp_path: Path) -> None:
    saved = Image.fromarray(photograph()).convert(mode)
    saved.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.asarray(saved.convert("RGB")))


def test_cmyk_becomes_the_rgb_that_pillow_makes_of_it(tmp_path: Path) -> None:
    Image.fromarray(photograph()).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    theirs = np.asarray(Image.open(tmp_path / "print.jpg").convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "print.jpg") - theirs).max() <= 2


def test_of_16_bits_the_upper_eight_are_kept(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256 * 256).reshape(256, 256).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), np.repeat((deep >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 100), (100, 20_000)])
def test_one_pixel_and_very_long_pictures_become_tensors(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "red.png")
    tensor, frame = tensor_from_image(read_image(tmp_path / "red.png"), (64, 64))
    assert frame.image_size_px == size[::-1]
    assert tensor[0].max(axis=(1, 2))[0] == 1 and tensor[0].min(axis=(1, 2)).tolist()[1:] == [0, 0]


def png_of(width: int, height: int) -> bytes:
    """A PNG's header over no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG's frame header over no pixels, after a comment and a fill byte."""
    comment, frame = b"\xff\xfe\x00\x06\xff\xc0\x00\x00", b"\xff\xff\xc2\x00\x0b\x08"
    return b"\xff\xd8" + comment + frame + struct.pack(">HH", height, width) + b"\x01\x01\x11\x00"


def bmp_of(width: int, height: int) -> bytes:
    """A BMP's header over no pixels, stored from the top."""
    return b"BM" + bytes(12) + struct.pack("<IiiHH", 40, width, -height, 1, 24) + bytes(24)


def old_bmp_of(width: int, height: int) -> bytes:
    """The same in OS/2's first form."""
    return b"BM" + bytes(12) + struct.pack("<IHHHH", 12, width, height, 1, 24)


@pytest.mark.parametrize("content", [png_of, jpeg_of, bmp_of, old_bmp_of])
def test_more_pixels_than_the_limit_are_refused_by_the_header_alone(
    content: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    (tmp_path / "bomb.png").write_bytes(content(20_000, 20_000))
    with pytest.raises(UnreadableImage, match="20000 x 20000 px, more than 178956970"):
        read_image(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(content(20_000, 8_000))
    with pytest.raises(UnreadableImage, match="20000 x 8000 px that is damaged or cut short"):
        read_image(tmp_path / "bomb.png")
