"""Which images INT8 is calibrated with, and what becomes of a folder's other files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.toolkit.calibration.images import CalibrationImages, choose_images, tensors
from app.toolkit.calibration.looks import looks_like
from app.toolkit.errors import NoImages, UnreadableImage
from app.toolkit.images import DEFAULT_IMAGES, Float32Array, Uint8Array, list_images, read_image, tensor_from_image
from tests.toolkit.scenes import make_scenes


def preprocess(image: Uint8Array) -> Float32Array:
    return tensor_from_image(image, (96, 64))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of pills."""
    return make_scenes(tmp_path_factory.mktemp("scenes"), images=12, seed=4) / "images"


def crops(folder: Path, count: int) -> Path:
    """`count` different pieces of a photograph."""
    image = read_image(DEFAULT_IMAGES[0])
    for index in range(count):
        Image.fromarray(image[8 * index : 8 * index + 64, :96]).save(folder / f"{index:02d}.png")
    return folder


def save(path: Path, image: Uint8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def names(chosen: tuple[Path, ...]) -> list[str]:
    return [path.name for path in chosen]


def test_calibration_and_held_out_are_apart_and_the_same_for_the_same_seed(folder: Path) -> None:
    chosen = choose_images(folder, count=6, held_out=4)
    assert len(chosen.calibration) == 6 and len(chosen.held_out) == 4
    assert not set(chosen.calibration) & set(chosen.held_out)
    assert (
        chosen
        == choose_images(folder, count=6, held_out=4, workers=1)
        == choose_images(str(folder), count=6, held_out=4)
    )
    assert chosen.calibration != choose_images(folder, count=6, held_out=4, seed=1).calibration
    assert chosen.warnings == () and chosen.unreadable == ()


def test_the_digest_is_of_the_contents_whatever_the_folder_and_the_names(folder: Path, tmp_path: Path) -> None:
    for index, path in enumerate(list_images(folder)):
        (tmp_path / "moved" / f"{index:02d}.JPG").parent.mkdir(exist_ok=True)
        (tmp_path / "moved" / f"{index:02d}.JPG").write_bytes(path.read_bytes())
    here, there = choose_images(folder, count=5), choose_images(tmp_path, count=5)
    assert here.digest() == there.digest() != choose_images(folder, count=4).digest()
    changed = there.calibration[0]
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert choose_images(tmp_path, count=5).digest() != here.digest()


@pytest.mark.parametrize(
    ("there", "count", "held_out", "calibrated", "kept"),
    [
        (1, 10, 5, 1, 0),
        (2, 10, 5, 1, 1),
        (10, 10, 5, 8, 2),
        (12, 10, 2, 10, 2),
        (11, 10, 2, 9, 2),
        (10, 2, 20, 2, 8),
        (10, 20, 0, 10, 0),
    ],
)
def test_too_few_images_are_shared_out_and_warned_about(
    there: int, count: int, held_out: int, calibrated: int, kept: int, tmp_path: Path
) -> None:
    chosen = choose_images(crops(tmp_path, there), count=count, held_out=held_out)
    assert (len(chosen.calibration), len(chosen.held_out)) == (calibrated, kept)
    warned = [text for text in chosen.warnings if "fewer images than asked" in text]
    assert len(warned) == (calibrated < count or kept < held_out)


def test_copies_are_passed_over_and_never_held_out(tmp_path: Path) -> None:
    crops(tmp_path, 6)
    for path in list_images(tmp_path):
        (tmp_path / f"copy of {path.name}").write_bytes(path.read_bytes())
    chosen = choose_images(tmp_path, count=3, held_out=3)
    contents = [path.read_bytes() for path in (*chosen.calibration, *chosen.held_out)]
    assert len(set(contents)) == len(contents) == 6
    everything = choose_images(tmp_path, count=12)
    assert len(everything.calibration) == 6
    assert "6 files are copies of images already taken and were passed over" in everything.warnings


def test_a_folder_of_all_sorts_gives_what_can_be_read_and_names_the_rest(tmp_path: Path) -> None:
    crops(tmp_path, 3)
    photograph = Image.open(DEFAULT_IMAGES[1])
    photograph.convert("CMYK").save(tmp_path / "cmyk.JPEG")
    photograph.save(tmp_path / "really a png.jpg", format="PNG")
    save(tmp_path / "deep" / "16 bit.PNG", np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16)  # type: ignore[arg-type]
    Image.new("RGB", (1, 1)).save(tmp_path / "one pixel.bmp")
    photograph.resize((20_000, 30)).save(tmp_path / "long.jpg")
    (tmp_path / "deep" / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes(DEFAULT_IMAGES[0].read_bytes()[:40_000])
    (tmp_path / "notes.txt").write_text("not looked at")
    chosen = choose_images(tmp_path, count=100)
    assert sorted(names(chosen.calibration)) == [
        *("00.png", "01.png", "02.png", "16 bit.PNG", "cmyk.JPEG", "long.jpg", "one pixel.bmp", "really a png.jpg")
    ]
    assert {one.name: one.reason for one in chosen.unreadable} == {
        "deep/empty.jpg": "0 bytes that are no picture of these kinds",
        "notes.png": "13 bytes that are no picture of these kinds",
        "cut.jpg": "a picture of 810 x 1080 px that is damaged or cut short",
    }
    assert all(batch.shape == (1, 3, 96, 64) for batch in tensors(chosen.calibration, preprocess))


def test_the_record_counts_all_unreadable_files_and_names_the_first_twenty(tmp_path: Path) -> None:
    crops(tmp_path, 4)
    for index in range(30):
        (tmp_path / f"bad {index}.jpg").write_bytes(b"bad")
    record = choose_images(tmp_path, count=8, held_out=1).as_dict()
    assert json.loads(json.dumps(record)) == record
    assert (record["asked"], record["used"], record["held_out"]) == (8, 3, 1)
    assert record["unreadable"]["count"] == 30 and len(record["unreadable"]["files"]) == 20
    assert set(record["unreadable"]["files"][0]) == {"name", "reason"}
    assert "fewer images than asked" in record["warnings"][0]


def test_where_nothing_can_be_read_the_error_names_files(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(NoImages, match=r"none of the folder's 1 images can be read.*bad\.jpg: 0 bytes"):
        choose_images(tmp_path, count=1)
    with pytest.raises(NoImages, match="there is no image in the folder"):
        choose_images(tmp_path / "nothing here", count=1)


@pytest.mark.parametrize("workers", [1, 3])
def test_tensors_are_the_preprocessings_own_in_order(workers: int, folder: Path) -> None:
    images = list_images(folder)
    streamed = list(tensors(images, preprocess, workers=workers))
    assert np.array_equal(np.concatenate(streamed), np.concatenate([preprocess(read_image(path)) for path in images]))
    assert streamed[0].dtype == np.float32


def test_the_last_batch_is_filled_up_from_the_first_images(folder: Path) -> None:
    images = list_images(folder)[:3]
    single = np.concatenate(list(tensors(images, preprocess)))
    assert [batch.shape for batch in tensors(images, preprocess, batch_size=2)] == [(2, 3, 96, 64)] * 2
    assert np.array_equal(np.concatenate(list(tensors(images, preprocess, batch_size=2))), single[[0, 1, 2, 0]])
    assert np.array_equal(next(tensors(images, preprocess, batch_size=8)), single[[0, 1, 2, 0, 1, 2, 0, 1]])


def test_threads_run_only_a_little_ahead_and_end_with_the_stream(folder: Path) -> None:
    begun: list[int] = []

    def counted(image: Uint8Array) -> Float32Array:
        begun.append(1)
        return preprocess(image)

    before = threading.active_count()
    stream = tensors(list_images(folder), counted, workers=2)
    next(stream)
    time.sleep(0.3)  # enough for all twelve
    assert 1 <= len(begun) <= 4
    del stream
    assert threading.active_count() == before


def test_an_image_that_went_away_is_named(folder: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg"):
        list(tensors([*list_images(folder), folder / "gone.jpg"], preprocess))


NOISE = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
GAUSSIAN = np.clip(128 + 20 * np.random.default_rng(0).standard_normal((320, 320, 3)), 0, 255).astype(np.uint8)


def as_jpeg(image: Uint8Array, quality: int) -> Uint8Array:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)


@pytest.mark.parametrize("noise", [NOISE, np.repeat(NOISE[..., :1], 3, axis=2), GAUSSIAN, NOISE[:32, :32]])
def test_noise_is_recognised_also_through_a_jpeg(noise: Uint8Array) -> None:
    assert [looks_like(noise), looks_like(as_jpeg(noise, 95)), looks_like(as_jpeg(noise, 75))] == ["noise"] * 3


def text_page() -> Uint8Array:
    page = Image.new("RGB", (320, 320), "white")
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz MW#@&"), (40, 80))
    for index, line in enumerate(letters):
        ImageDraw.Draw(page).text((0, 8 * index), "".join(line), fill="black", font_size=8)
    return np.asarray(page)


def drawing() -> Uint8Array:
    page = Image.new("RGB", (320, 320), (200, 200, 190))
    ImageDraw.Draw(page).ellipse((100, 100, 160, 180), fill=(200, 30, 30))
    return np.asarray(page)


def dithered() -> Uint8Array:
    return np.asarray(Image.open(DEFAULT_IMAGES[0]).convert("1").convert("RGB"))


def checkerboard() -> Uint8Array:
    squares = (np.indices((320, 320)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.repeat(squares[..., None], 3, axis=2)


@pytest.mark.parametrize("make", [text_page, drawing, dithered, checkerboard])
def test_busy_and_plain_pictures_are_no_noise(make: Callable[[], Uint8Array]) -> None:
    assert looks_like(make()) == "picture"


def test_photographs_and_scenes_are_pictures(folder: Path) -> None:
    assert {looks_like(read_image(path)) for path in (*DEFAULT_IMAGES, *list_images(folder))} == {"picture"}


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (64, 64, 3), (100, 20_000, 3)])
def test_one_colour_is_constant_in_any_shape(shape: tuple[int, int, int]) -> None:
    assert looks_like(np.full(shape, 7, np.uint8)) == "constant"


def mixed(folder: Path, *, noise: int, constant: int, pictures: int) -> CalibrationImages:
    crops(folder, pictures)
    for index in range(noise):
        save(folder / f"noise {index}.png", np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for index in range(constant):
        save(folder / f"constant {index}.png", np.full((64, 64, 3), index, np.uint8))
    return choose_images(folder, count=noise + constant + pictures)


def test_a_set_that_is_half_noise_or_one_colour_is_warned_about(tmp_path: Path) -> None:
    (warning,) = mixed(tmp_path, noise=2, constant=1, pictures=3).warnings
    assert "of 6 calibration images 2 are random noise and 1 are of one colour" in warning
    assert "calibrate with images like those the model will see" in warning


def test_a_set_that_is_mostly_pictures_is_not(tmp_path: Path) -> None:
    assert mixed(tmp_path, noise=1, constant=1, pictures=3).warnings == ()
