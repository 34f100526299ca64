"""The command's words, read without a service."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from app.cli_request import UsageFault, find_kind, input_field, is_key, job_and_rest, parse_settings
from app.client import Event, parse_events
from tests.harness import ROOT


@pytest.mark.parametrize(
    ("words", "job", "rest"),
    [
        (["P0001/O0007"], "P0001/O0007", []),
        (["P0001", "O0007"], "P0001/O0007", []),
        (["P0001", "O0007", "best.onnx"], "P0001/O0007", ["best.onnx"]),
        (["P0001/O0007", "reports/a.html"], "P0001/O0007", ["reports/a.html"]),
        (["/optimizing/jobs/P0001/O0007"], "P0001/O0007", []),
        (["http://127.0.0.1:8000/optimizing/jobs/P0001/O0007/"], "P0001/O0007", []),
    ],
)
def test_a_job_is_named_in_several_ways(words: list[str], job: str, rest: list[str]) -> None:
    name, left = job_and_rest(words)
    assert (str(name), left) == (job, rest)


@pytest.mark.parametrize("words", [["P0001"], ["O0007"], ["P0001", "7"], ["p0001/O0007"], ["P٠٠٠١/O0007"], [""]])  # noqa: RUF001
def test_what_names_no_job_is_a_usage_fault(words: list[str]) -> None:
    with pytest.raises(UsageFault):
        job_and_rest(words)


def test_values_are_json_where_they_read_as_json() -> None:
    found = parse_settings(["a=[640,640]", "b=0.5", "c=true", "d=null", "e=text", "f=a=b", 'g="17"', "h=", "i.j.k=1"])
    assert found == {
        "a": [640, 640],
        "b": 0.5,
        "c": True,
        "d": None,
        "e": "text",
        "f": "a=b",
        "g": "17",
        "h": "",
        "i": {"j": {"k": 1}},
    }


@pytest.mark.parametrize("settings", [["name"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"]])
def test_settings_that_cannot_be_read(settings: list[str]) -> None:
    with pytest.raises(UsageFault):
        parse_settings(settings)


def _kind(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"action": "toy", "parameters_schema": {"required": required, "properties": properties}}


def test_the_input_field_comes_from_the_schema() -> None:
    text = {"type": "string"}
    assert input_field(_kind(["kind", "input_path"], kind=text, input_path=text)) == "input_path"
    assert input_field(_kind(["kind"], kind=text, input_path=text)) == "input_path"
    other = _kind(
        ["kind", "precision", "engine_path"], precision={**text, "enum": ["fp16"]}, engine_path=text, kind=text
    )
    assert input_field(other) == "engine_path"
    assert input_field(_kind(["kind", "seconds"], kind=text, seconds={"type": "number"})) is None


def test_the_nearest_action_is_named() -> None:
    with pytest.raises(UsageFault, match="did you mean toy"):
        find_kind([_kind([])], "toi")


def test_what_a_key_looks_like() -> None:
    assert is_key("artifacts/P0001/optimizing/O0001/best.pt")
    assert is_key("/app/int8_calib_images")
    assert not is_key("best.pt")


def test_events_are_read_as_the_standard_has_them() -> None:
    whole = ["event: state", 'data: {"status":', 'data: "queued"}', "id: 1.0", "retry: 1000", ""]
    lines = [": ping", "", *whole, "id: 2.0", "", "data:{}", "", "data: {}"]
    assert list(parse_events(iter(lines))) == [
        Event("state", {"status": "queued"}, "1.0"),
        Event("message", {}, ""),
    ]


def test_the_command_starts_without_anything_heavy() -> None:
    script = "import sys, app.cli; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = [
        "torch",
        "numpy",
        "onnx",
        "fastapi",
        "pydantic",
        "httpx2",
        "app.config",
        "app.main",
        "app.jobs",
        "rich.table",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *heavy], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
