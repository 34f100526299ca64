"""What a file says of itself is read as strangers write it, or refused."""

from __future__ import annotations

import pytest

from app.toolkit.errors import NotAModel
from app.toolkit.models.exported import ExportedModel
from app.toolkit.runtimes.base import TensorSpec

ENTRIES = {"task": "detect", "stride": "32", "names": "{0: 'a', 1: 'b'}"}
INPUT = TensorSpec("images", "float32", ("batch", "channels", "height", "width"))
OUTPUT = TensorSpec("output0", "float32", ("batch", 6, "anchors"))


def read(**entries: str) -> ExportedModel:
    return ExportedModel({**ENTRIES, **entries}, [INPUT], [OUTPUT])


@pytest.mark.parametrize("names", ["['a', 'b']", "('a', 'b')", "{0: 'a', 1: 'b'}", "{'0': 'a', '1': 'b'}"])
def test_names_are_a_list_or_a_mapping(names: str) -> None:
    assert read(names=names).names == {0: "a", 1: "b"}


@pytest.mark.parametrize(("text", "size"), [("640", (640, 640)), ("[320, 640]", (320, 640)), ("(64, 32)", (64, 32))])
def test_a_size_is_one_side_or_two(text: str, size: tuple[int, int]) -> None:
    assert read(imgsz=text).input_size == size


@pytest.mark.parametrize(
    ("key", "text"),
    [("names", "{'a': 0}"), ("names", "7"), ("imgsz", "[640]"), ("imgsz", "['a', 'b']"), ("channels", "[3]")],
)
def test_what_cannot_be_is_refused_by_the_entrys_name(key: str, text: str) -> None:
    with pytest.raises(NotAModel, match=f"`{key}`") as raised:
        read(**{key: text})
    assert raised.value.received == text


@pytest.mark.parametrize("text", ["{[]: 1}", "[" * 5000, "-" * 100_000 + "1", "a b"])
def test_what_is_no_text_of_a_value_is_taken_as_missing(text: str) -> None:
    assert read(names=text, imgsz=text, channels=text).names == {}
