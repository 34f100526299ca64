"""`report.html`: one file that opens offline and cannot be made to do anything; its pictures, as pixels."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageColor

from app.toolkit.coco import CocoData
from app.toolkit.images import Uint8Array, read_image
from app.toolkit.models.base import ModelAdapter
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from app.toolkit.verification.html import report_html, shown
from app.toolkit.verification.pictures import ALONE, BOTH, GAP_PX, MAX_PICTURES, draw_pair, in_words, worst_pictures
from app.toolkit.verification.request import S4_NMS
from app.toolkit.verification.result import Comparison, RawFigures, Worst
from tests.toolkit.told import (
    BOXES,
    CANDIDATE,
    CLASSES,
    NAMES,
    detections,
    facts_of_classifier,
    facts_of_detector,
    gate,
    worst_of,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}
ATTACK = "\"><script>alert(1)</script>'{{ 7 * 7 }}.png"


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag was closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A grey picture of 320 x 200 px."""
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), np.full((200, 320, 3), 128, dtype=np.uint8))
    return path


def with_worst(facts: Any, *worst: Worst) -> Any:
    return replace(facts, kernel=replace(facts.kernel, worst=worst), pipeline=replace(facts.pipeline, worst=worst))


def different(path: Path, name: str = "a.png") -> Worst:
    return worst_of(path, detections(((20, 30, 120, 130), 0.9, 0)), detections(((200, 40, 300, 140), 0.8, 1)), name)


def test_the_page_is_whole_and_the_verdict_comes_first(image: Path) -> None:
    facts = facts_of_detector(kernel=[gate("map_0_5")], pipeline=[gate("iou_delta_p95", "failed")])
    page = Page(report_html(with_worst(facts, different(image))))
    assert page.open == []
    body = page.text[page.text.index("✗") :]
    assert body.startswith("✗ Failed: the networks agree, but not with the preprocessing")
    headings = [body.index(words) for words in ("Where to look", "The two answers", "The images that differ most")]
    assert headings == sorted(headings)
    for words in ("Kernel parity", "Pipeline parity", "iou_delta_p95", "YOLOv8n", "oval", "broken.jpg", "1.23"):
        assert words in body


@pytest.mark.parametrize(
    ("verdict", "strict", "words"),
    [
        ("passed", False, "Passed: the candidate answers like the reference"),
        ("failed", False, "Failed: fed the same tensors, the networks answer differently"),
        ("undecided", False, "Undecided after 8 images, which this request does not count against it"),
        ("undecided", True, "Undecided after 8 images, which this request counts as a failure"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: Any, strict: bool, words: str) -> None:
    assert words in Page(report_html(facts_of_detector(kernel=[gate("map_0_5", verdict)], strict=strict))).text


def test_it_opens_offline_and_runs_nothing(image: Path) -> None:
    text = report_html(with_worst(facts_of_detector(), different(image)))
    page = Page(text)
    assert "://" not in text and 'src="//' not in text
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"} == set()
    sources = [attributes.get("src") or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 1 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in text and "@import" not in text


def test_names_from_outside_stay_text(image: Path) -> None:
    figures = replace(BOXES, borderline=({"name": ATTACK},), worst_classes=({"name": ATTACK},))
    facts = facts_of_detector(
        kernel=[gate(ATTACK, "failed")],
        candidate=replace(CANDIDATE, path=ATTACK, preprocessing={"resize": ATTACK}, providers_refused={ATTACK: ATTACK}),
        notes=(ATTACK,),
        unreadable={ATTACK: ATTACK},
        versions={ATTACK: ATTACK},
        names={0: ATTACK, 1: ATTACK},
    )
    facts = replace(facts, kernel=replace(facts.kernel, figures=figures))
    text = report_html(with_worst(facts, different(image, name=ATTACK)))
    page = Page(text)
    assert page.open == [] and "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(ATTACK) >= 10
    assert "<script" not in text


def test_a_classifier_has_its_figures_and_its_best_classes(image: Path) -> None:
    worst = worst_of(image, ((0, 0.6), (1, 0.3)), ((1, 0.5), (0, 0.4)))
    page = Page(report_html(with_worst(facts_of_classifier(), worst)))
    assert "7.4e-07" in page.text and "images with another best class" in page.text
    assert "reference: round 0.6000, oval 0.3000" in page.text
    assert "None." in page.text  # neither worst classes nor borderline samples


def test_tensors_that_mean_nothing_are_told_by_output() -> None:
    figures = RawFigures(2, {"output0": {"max_abs": 0.25, "cosine": None}}, 0)
    kernel = Comparison("kernel", figures, (gate("kernel_output0"),))
    facts = facts_of_detector(kernel=kernel.gates)
    page = Page(report_html(replace(facts, kernel=kernel, pipeline=replace(kernel, name="pipeline"))))
    assert "output0, largest differences" in page.text and "max_abs: 0.25, cosine: -" in page.text


def test_differences_of_preprocessing_stand_field_by_field() -> None:
    candidate = replace(CANDIDATE, preprocessing=Preprocessing(channel_order="BGR").as_dict())
    facts = facts_of_detector(candidate=candidate)
    assert facts.preprocessing_differences == [{"field": "channel_order", "reference": "RGB", "candidate": "BGR"}]
    text = Page(report_html(facts)).text
    assert "prepare an image differently" in text
    assert "Both prepare an image in the same way" in Page(report_html(facts_of_detector())).text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (1e-7, "1e-07"), (float("nan"), "nan"), ((1, "h"), "1, h"), ({"a": 0.5}, "a: 0.5")],
)
def test_values_are_written_for_people(value: Any, text: str) -> None:
    assert shown(value) == text


# -- pictures -----------------------------------------------------------------------------------------------------
def pixels_of(picture: Image.Image) -> tuple[Uint8Array, Uint8Array]:
    """Both sides."""
    pixels = np.asarray(picture)
    width = (pixels.shape[1] - GAP_PX) // 2
    return pixels[:, :width], pixels[:, width + GAP_PX :]


def count(pixels: Uint8Array, colour: str) -> int:
    return int((pixels == np.array(ImageColor.getrgb(colour))).all(axis=2).sum())


def test_what_both_found_is_drawn_alike(image: Path) -> None:
    found = detections(((20, 30, 120, 130), 0.9, 0))
    left, right = pixels_of(draw_pair(read_image(image), worst_of(image, found, found), NAMES))
    assert np.array_equal(left[40:], right[40:])
    assert count(left, BOTH) > 700 and count(left, ALONE) == 0


def test_what_one_found_is_drawn_on_its_side_in_another_way(image: Path) -> None:
    both, alone = ((20, 30, 120, 130), 0.9, 0), ((200, 40, 300, 140), 0.8, 1)
    pair = draw_pair(read_image(image), worst_of(image, detections(both), detections(both, alone)), NAMES)
    left, right = pixels_of(pair)
    assert count(left, ALONE) == 0 and count(right, ALONE) > 500
    assert np.array_equal(left[30:, :180], right[30:, :180])
    assert not np.array_equal(left[30:, 190:310], right[30:, 190:310])


def test_the_line_of_what_one_found_is_broken(image: Path) -> None:
    alone = detections(((20, 60, 300, 150), 0.8, 1))
    _, right = pixels_of(draw_pair(read_image(image), worst_of(image, detections(), alone), NAMES))
    rows = (right == np.array(ImageColor.getrgb(ALONE))).all(axis=2)
    bottom = rows[26 + 150]
    assert np.count_nonzero(np.diff(bottom.astype(int)) == 1) > 10


@pytest.mark.parametrize(("shape", "side"), [((1080, 1920), 640), ((48, 48), 320), ((400, 200), 400), ((9, 3000), 640)])
def test_sides_are_neither_too_large_nor_too_small(shape: tuple[int, int], side: int, image: Path) -> None:
    picture = np.zeros((*shape, 3), dtype=np.uint8)
    left, right = pixels_of(draw_pair(picture, worst_of(image, detections(), detections()), NAMES))
    assert left.shape == right.shape
    assert max(left.shape[0] - 26, left.shape[1]) == side


def test_labels_of_two_classes_at_one_place_do_not_hide_each_other(image: Path) -> None:
    place = (60, 60, 160, 160)
    twice = detections((place, 0.9, 0), (place, 0.8, 1))
    _, once = pixels_of(draw_pair(read_image(image), worst_of(image, detections(), detections((place, 0.9, 0))), NAMES))
    _, both = pixels_of(draw_pair(read_image(image), worst_of(image, detections(), twice), NAMES))
    assert count(both, ALONE) > count(once, ALONE) + 500


def test_boxes_at_and_beyond_the_edges_are_drawn(image: Path) -> None:
    beyond = detections(((-50, -50, 5000, 5000), 0.9, 0), ((10, 10, 10, 10), 0.8, 1), ((300, 190, 100, 50), 0.7, 2))
    left, _ = pixels_of(draw_pair(read_image(image), worst_of(image, beyond, detections()), NAMES))
    assert count(left, ALONE) > 500


@pytest.mark.parametrize("name", ["알약", "a" * 400, "$x$", "", "line\nbreak"])
def test_no_class_name_breaks_a_picture(name: str, image: Path) -> None:
    worst = worst_of(image, detections(((20, 30, 120, 130), 0.9, 0)), detections())
    assert draw_pair(read_image(image), worst, {0: name}).size == (320 * 2 + GAP_PX, 226)
    assert f"only by the reference: {name} 0.900" in list(in_words(worst, {0: name}))


def test_a_classifiers_picture_shows_the_probabilities_as_bars(image: Path) -> None:
    worst = worst_of(image, ((0, 0.75), (1, 0.25)), ((1, 0.5), (0, 0.5), (2, 0.0)))
    left, right = pixels_of(draw_pair(read_image(image), worst, NAMES))
    lengths = (left == np.array(ImageColor.getrgb(ALONE))).all(axis=2)[226:].sum(axis=1)
    assert lengths.max() == pytest.approx(0.75 * 320, abs=2)
    assert count(right, ALONE) > 0


def test_an_answer_that_is_not_finite_is_told(image: Path) -> None:
    worst = worst_of(image, ((0, 0.75),), ())
    assert draw_pair(read_image(image), worst, NAMES).height == 26 + 200 + 66
    assert list(in_words(worst, NAMES))[1] == "candidate: NaN or infinity"


def test_of_many_lone_detections_the_best_are_named(image: Path) -> None:
    many = detections(*[((index, 0, index + 9, 9), 0.9, 0) for index in range(0, 300, 10)])
    lines = list(in_words(worst_of(image, many, detections()), NAMES))
    assert (len(lines), lines[-1]) == (10, "only by the reference: 22 more")


def test_a_class_that_has_no_name_is_told_by_its_index(image: Path) -> None:
    worst = worst_of(image, ((7, 1.0),), ((7, 1.0),))
    assert list(in_words(worst, NAMES)) == ["reference: class 7 1.0000", "candidate: class 7 1.0000"]


def test_at_most_eight_are_drawn_and_what_is_gone_is_left_out(image: Path, tmp_path: Path) -> None:
    many = tuple(different(image, f"{index}.png") for index in range(20))
    kernel = Comparison("kernel", BOXES, (), (different(tmp_path / "gone.png"), *many))
    assert len(worst_pictures([replace(kernel, worst=many)], NAMES)) == MAX_PICTURES
    pictures = worst_pictures([kernel, replace(kernel, name="pipeline", worst=many)], NAMES)
    assert [one.name for one in pictures] == [*("0.png", "1.png", "2.png"), *("0.png", "1.png", "2.png", "3.png")]
    assert pictures[0].caption == "kernel parity, difference 0.5"
    nothing_to_see = worst_of(image, (), ()), replace(different(image), difference=0.0)
    assert worst_pictures([Comparison("kernel", CLASSES, (), nothing_to_see)], NAMES) == []


def test_real_detections_on_a_real_scene(adapter: ModelAdapter, few: CocoData) -> None:
    path = few.images / few.file_names[0]
    specs = adapter.input_specs((640, 640), 1)
    found = []
    with TorchRuntime(adapter.reference_module(), specs, adapter.output_specs()) as runtime:
        for preprocessing in (Preprocessing(), Preprocessing(resize="stretch", channel_order="BGR")):
            tensor, frame = preprocessing.apply(read_image(path), (640, 640))
            found += adapter.postprocess(runtime.infer({specs[0].name: tensor}), [frame], S4_NMS)
    worst = worst_of(path, found[0], found[1], few.file_names[0])
    (picture,) = worst_pictures([Comparison("pipeline", BOXES, (), (worst,))], adapter.names)
    left, right = pixels_of(Image.open(io.BytesIO(base64.b64decode(picture.data_uri.split(",")[1]))))
    assert left.shape == right.shape == (640 + 26, 640, 3)
    assert picture.lines[0] == f"{len(found[0])} detections by the reference, {len(found[1])} by the candidate"
    assert np.abs(left.astype(int) - right)[26:].max() > 100
