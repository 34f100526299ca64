"""The images on which two models differ most: the reference's answer on the left, the candidate's on the right.

What only one of them found is orange, dashed and says so: colour alone tells nobody who cannot see it.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.toolkit.agreement import matched_pairs
from app.toolkit.detections import Detections
from app.toolkit.errors import UnreadableImage
from app.toolkit.images import Uint8Array, read_image
from app.toolkit.stats.text import shortened
from app.toolkit.verification.result import Comparison, Worst

MAX_PICTURES = 8
MAX_SIDE_PX, MIN_SIDE_PX = 640, 320
"""Of one of the two pictures: larger images shrink, smaller ones grow, so that labels have room."""

GAP_PX, HEAD_PX, ROW_PX = 12, 26, 22
DASH_PX, SPACE_PX = 9, 6
LINE_PX, FONT_PX = 2, 14
MAX_NAME = 22
TOP, MAX_NAMED = 3, 8
NOT_FINITE = "NaN or infinity"
JPEG_QUALITY = 85

PAPER, INK, FAINT = "#ffffff", "#1f2933", "#d9dee4"
BOTH, ALONE = "#1c5d99", "#c2410c"

Prediction = tuple[int, float]
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """A drawn pair as a JPEG. `caption` says which answer it is of, `lines` in words how the two differ."""

    name: str
    caption: str
    lines: tuple[str, ...]
    jpeg: bytes

    @property
    def data_uri(self) -> str:
        """The picture as a `data:` address, which a page holds within itself."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def worst_pictures(comparisons: Sequence[Comparison], names: Mapping[int, str]) -> list[Picture]:
    """Up to MAX_PICTURES of the images that differ most, in equal parts of the answers that are given.

    Left out are images without any difference, those that are no longer there, and answers that are only tensors.
    """
    share = MAX_PICTURES // max(len(comparisons), 1)
    pictures = []
    for comparison in comparisons:
        for worst in comparison.worst[:share]:
            if not (
                worst.difference and (isinstance(worst.reference, Detections) or worst.reference or worst.candidate)
            ):
                continue
            try:
                image = read_image(worst.path)
            except UnreadableImage:
                continue
            jpeg = _jpeg(draw_pair(image, worst, names))
            caption = f"{comparison.name} parity, difference {worst.difference:.3g}"
            pictures.append(Picture(worst.name, caption, tuple(in_words(worst, names)), jpeg))
    return pictures


def draw_pair(image: Uint8Array, worst: Worst, names: Mapping[int, str]) -> Image.Image:
    """An [h, w, 3] uint8 RGB image twice, side by side, with each model's boxes or best classes.

    `names` are the classes'; those with letters that the font lacks are drawn by their index.
    """
    left, right = _panels(image, worst, names)
    pair = Image.new("RGB", (left.width + GAP_PX + right.width, left.height), PAPER)
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + GAP_PX, 0))
    return pair


def in_words(worst: Worst, names: Mapping[int, str]) -> Iterator[str]:
    """What a picture shows, a sentence a line."""
    reference, candidate = worst.reference, worst.candidate
    if isinstance(reference, Detections) and isinstance(candidate, Detections):
        yield f"{len(reference)} detections by the reference, {len(candidate)} by the candidate"
        for side, found, alone in _by_side(reference, candidate):
            for index in alone[:MAX_NAMED]:
                yield f"only by the {side}: {_name(found.classes[index], names)} {found.scores[index]:.3f}"
            if len(alone) > MAX_NAMED:
                yield f"only by the {side}: {len(alone) - MAX_NAMED} more"
    elif not isinstance(reference, Detections) and not isinstance(candidate, Detections):
        for side, best in (("reference", reference), ("candidate", candidate)):
            words = [f"{_name(index, names)} {share:.4f}" for index, share in best[:TOP]]
            yield f"{side}: {', '.join(words) or NOT_FINITE}"


def _panels(image: Uint8Array, worst: Worst, names: Mapping[int, str]) -> list[Image.Image]:
    reference, candidate = worst.reference, worst.candidate
    if isinstance(reference, Detections) and isinstance(candidate, Detections):
        return [_boxes(image, side, found, alone, names) for side, found, alone in _by_side(reference, candidate)]
    if isinstance(reference, Detections) or isinstance(candidate, Detections):
        raise TypeError("one answer is detections, the other is not")
    agree = [index for index, _ in reference[:1]] == [index for index, _ in candidate[:1]]
    return [
        _classes(image, side, best, names, agree=agree)
        for side, best in (("reference", reference), ("candidate", candidate))
    ]


def _by_side(reference: Detections, candidate: Detections) -> list[tuple[str, Detections, list[int]]]:
    """(side, its detections, the indices of those without a partner)."""
    pairs = matched_pairs(reference, candidate)
    return [
        (side, found, sorted(set(range(len(found))) - {pair[column] for pair in pairs}))
        for column, (side, found) in enumerate((("reference", reference), ("candidate", candidate)))
    ]


# -- detections ---------------------------------------------------------------------------------------------------
def _boxes(
    image: Uint8Array, side: str, found: Detections, alone: Sequence[int], names: Mapping[int, str]
) -> Image.Image:
    only = f", {len(alone)} only here" if alone else ""
    panel, scale = _panel(image, f"{side}: {len(found)} found{only}", rows=0, differs=bool(alone))
    draw = ImageDraw.Draw(panel)
    # The best are drawn last, and those that only one side has after all others: nothing may hide them.
    order = sorted(range(len(found)), key=lambda index: (index in alone, found.scores[index]))
    tags: list[Corners] = []
    for index in order:
        corners = np.sort((found.boxes_xyxy[index] * scale).reshape(2, 2), axis=0)
        low, high = np.clip(
            corners + np.array([0, HEAD_PX]), (0, HEAD_PX), (panel.width - 1, panel.height - 1)
        ).tolist()
        colour = ALONE if index in alone else BOTH
        _rectangle(draw, (*low, *high), colour, dashed=index in alone)
        suffix = " only here" if index in alone else ""
        label = f"{_drawable(found.classes[index], names)}  {found.scores[index]:.2f}{suffix}"
        tags.append(_tag(draw, label, (*low, *high), colour, panel, tags))
    return panel


def _rectangle(draw: ImageDraw.ImageDraw, corners: Corners, colour: str, *, dashed: bool) -> None:
    """Over a white rim, which keeps it visible on any image."""
    x1, y1, x2, y2 = corners
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=LINE_PX + 2)
    if not dashed:
        draw.rectangle(corners, outline=colour, width=LINE_PX)
        return
    for start, stop in (((x1, y1), (x2, y1)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2)), ((x2, y1), (x2, y2))):
        length = math.dist(start, stop)
        for begun in np.arange(0, length, DASH_PX + SPACE_PX):
            ends = [begun / length, min(begun + DASH_PX, length) / length]
            points = [(start[0] + (stop[0] - start[0]) * part, start[1] + (stop[1] - start[1]) * part) for part in ends]
            draw.line(points, fill=colour, width=LINE_PX + 1)


def _tag(
    draw: ImageDraw.ImageDraw, text: str, box: Corners, colour: str, panel: Image.Image, taken: Sequence[Corners]
) -> Corners:
    """A label at a box's left edge: above it, else below, else within, where no other label is; returns its place."""
    width, height = int(draw.textlength(text, font=_font())) + 8, FONT_PX + 5
    x = max(min(int(box[0]), panel.width - width), 0)
    wanted = (box[1] - height, box[3], *np.arange(box[1], box[3] - height, height))
    rows = [int(min(max(y, HEAD_PX), panel.height - height)) for y in wanted]
    places: list[Corners] = [(x, y, x + width, y + height) for y in rows]
    place = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
    draw.rectangle(place, fill=colour)
    draw.text((x + 4, place[1] + height // 2), text, fill=PAPER, font=_font(), anchor="lm")
    return place


def _overlap(first: Corners, second: Corners) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


# -- classes ------------------------------------------------------------------------------------------------------
def _classes(
    image: Uint8Array, side: str, best: Sequence[Prediction], names: Mapping[int, str], *, agree: bool
) -> Image.Image:
    shown = best[:TOP]
    head = side if agree else f"{side}: the best classes differ"
    panel, _ = _panel(image, head, rows=TOP, differs=not agree)
    draw, font = ImageDraw.Draw(panel), _font()
    top = panel.height - TOP * ROW_PX
    if not shown:
        draw.text((2, top + 9), NOT_FINITE, fill=ALONE, font=font, anchor="lm")
    for row, (index, share) in enumerate(shown):
        y = top + row * ROW_PX
        colour = ALONE if row == 0 and not agree else BOTH
        length = panel.width * min(max(share, 0.0), 1.0)
        draw.rectangle((0, y + ROW_PX - 4, panel.width, y + ROW_PX - 2), fill=FAINT)
        draw.rectangle((0, y + ROW_PX - 4, length, y + ROW_PX - 2), fill=colour)
        draw.text((2, y + 9), _drawable(index, names), fill=INK, font=font, anchor="lm")
        draw.text((panel.width - 2, y + 9), f"{share:.4f}", fill=INK, font=font, anchor="rm")
    return panel


# -- both ---------------------------------------------------------------------------------------------------------
def _panel(image: Uint8Array, head: str, *, rows: int, differs: bool) -> tuple[Image.Image, float]:
    """The image under a heading and over `rows` empty rows, and its scale (px of the panel per px of the image)."""
    longest, widest = max(image.shape[:2]), image.shape[1]
    scale = min(max(MIN_SIDE_PX / longest, 1.0), MAX_SIDE_PX / longest)
    width, height = max(round(widest * scale), 1), max(round(image.shape[0] * scale), 1)
    panel = Image.new("RGB", (max(width, MIN_SIDE_PX // 2), HEAD_PX + height + rows * ROW_PX), PAPER)
    panel.paste(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), (0, HEAD_PX))
    draw = ImageDraw.Draw(panel)
    draw.text((2, HEAD_PX // 2), head, fill=ALONE if differs else INK, font=_font(), anchor="lm")
    return panel, scale


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which no machine lacks."""
    return ImageFont.load_default(FONT_PX)


def _name(index: int, names: Mapping[int, str]) -> str:
    return names.get(int(index), f"class {index}")


def _drawable(index: int, names: Mapping[int, str]) -> str:
    name = _name(index, names)
    return shortened(name, MAX_NAME) if name.isascii() else f"class {index}"


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
