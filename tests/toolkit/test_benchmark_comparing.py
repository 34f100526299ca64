"""Two benchmarks side by side: what is called slower, what is not judged, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.toolkit.benchmark.comparing import Comparison, RowComparison, change_of, compare, ratio_interval
from app.toolkit.benchmark.comparison_text import comparison_markdown, verdict
from app.toolkit.benchmark.reading import StoredRow, load_benchmark
from app.toolkit.benchmark.result import Accuracy, Row
from app.toolkit.errors import CorruptFile
from app.toolkit.latency import median_interval
from tests.toolkit.benchmark_results import (
    DISTURBANCE,
    MACHINE,
    RUNNER_NOTE,
    benchmark_of,
    disturbed,
    lacking,
    s1_table,
    timed,
    unstable,
)

Document = dict[str, Any]


CPU: Document = {"model": "Another", "cores": 8, "cores_usable": 2, "governor": None}


def _document(*rows: Row, **changes: Any) -> Document:
    """As it comes from the file."""
    document: Document = json.loads(json.dumps(benchmark_of(*rows, **changes).as_dict(), allow_nan=False))
    return document


def _of_one(before_ms: float, after_ms: float, *, spread: float = 0.01) -> RowComparison:
    before, after = (_document(timed("onnxruntime", 1, ms, spread=spread)) for ms in (before_ms, after_ms))
    (row,) = compare(before, after).rows
    return row


def _machine(**changes: Any) -> Document:
    return {"before": {**MACHINE, **changes}, "after": MACHINE}


def test_the_ratio_is_of_the_time_and_its_interval_the_widest_that_both_allow() -> None:
    row = _of_one(10.0, 20.0)
    assert row.ratio == pytest.approx(2.0)
    assert row.ratio_interval == pytest.approx((19.8 / 10.1, 20.2 / 9.9))


@pytest.mark.parametrize(
    ("after_ms", "change"),
    [(10.0, "alike"), (10.2, "alike"), (10.5, "undecided"), (10.8, "slower"), (9.5, "undecided"), (9.2, "faster")],
)
def test_only_an_interval_wholly_beyond_the_tolerance_is_slower(after_ms: float, change: str) -> None:
    row = _of_one(10.0, after_ms)
    assert row.change == change
    assert row.regression is {"slower": True, "undecided": None}.get(change, False)


def test_a_wide_interval_hides_a_regression_and_is_not_called_alike() -> None:
    assert _of_one(10.0, 11.5, spread=0.01).change == "slower"
    assert _of_one(10.0, 11.5, spread=0.06).change == "undecided"
    assert _of_one(10.0, 10.0, spread=0.06).change == "undecided"


@pytest.mark.parametrize("sigma", [0.02, 0.3], ids=["quiet", "long-tailed"])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(sigma: float) -> None:
    draws = np.random.default_rng(9).lognormal(np.log([[10.0], [11.0]]), sigma, (1000, 2, 60))
    held = 0
    for before, after in draws:
        rows = [_stored_row(calls.tolist()) for calls in (before, after)]
        low, high = ratio_interval(*rows)
        held += low <= 1.1 <= high
    assert held >= 950


def _stored_row(calls: list[float]) -> StoredRow:
    return StoredRow("onnxruntime", 1, headline_ms=float(np.median(calls)), interval_ms=median_interval(calls))


def test_what_is_missing_in_both_for_one_reason_is_told_once() -> None:
    (row,) = compare(_document(lacking("torch_fp16")), _document(lacking("torch_fp16"))).rows
    assert row.why_not == "both: TensorRT is not installed | here"


def test_swapping_the_benchmarks_swaps_slower_and_faster() -> None:
    swapped = {"slower": "faster", "faster": "slower"}
    for low in (0.5, 0.9, 0.94, 0.96, 1.0, 1.04, 1.06, 2.0):
        for width in (1.001, 1.03, 1.2):
            forward, backward = change_of((low, low * width), 0.05), change_of((1 / (low * width), 1 / low), 0.05)
            assert backward == swapped.get(forward, forward)


def test_one_slow_row_makes_the_whole_a_regression_and_is_named() -> None:
    before = _document(timed("torch_fp32", 1, 70.0), timed("tensorrt_fp16", 1, 13.0), timed("tensorrt_fp16", 2, 20.0))
    after = _document(timed("torch_fp32", 1, 60.0), timed("tensorrt_fp16", 1, 13.0), timed("tensorrt_fp16", 2, 30.0))
    found = compare(before, after)
    assert found.regression is True
    assert [row.change for row in found.rows] == ["faster", "alike", "slower"]
    assert verdict(found) == (
        "Regression beyond 5 %: rows judged 3, 1 slower, 1 faster, 1 alike. "
        "The worst is TensorRT FP16 at batch 2, 1.500 (1.470 to 1.530) times as long."
    )


UNDECIDED = (timed("onnxruntime", 1, 10.0), timed("onnxruntime", 1, 10.5))
LOST = (timed("onnxruntime", 1, 10.0), disturbed("onnxruntime", 1, 10.0))
NEVER_QUOTED = (unstable("onnxruntime", 1, 10.0), timed("onnxruntime", 1, 10.0))
GONE = (timed("onnxruntime", 1, 10.0), lacking("onnxruntime"))


@pytest.mark.parametrize("pair", [UNDECIDED, LOST, NEVER_QUOTED, GONE], ids=["undecided", "lost", "never", "gone"])
def test_no_regression_is_claimed_where_a_row_that_was_timed_is_not_decided(pair: tuple[Row, Row]) -> None:
    alike, slower = timed("torch_fp32", 1, 10.0), timed("torch_fp32", 1, 20.0)
    before, after = _document(alike, pair[0]), _document(alike, pair[1])
    found = compare(before, after)
    assert found.regression is None
    assert verdict(found).startswith("Undecided: no row is slower beyond 5 %, but 1 may be: rows judged ")
    found = compare(before, _document(slower, pair[1]))
    assert found.regression is True, "one that is slower decides"
    assert verdict(found).startswith("Regression beyond 5 %")


def test_ways_that_are_new_or_never_ran_or_were_not_asked_for_again_leave_no_doubt() -> None:
    alike = timed("torch_fp32", 1, 10.0)
    before = _document(alike, lacking("onnxruntime"), lacking("tensorrt_fp16"), timed("torch_fp16", 1, 5.0))
    found = compare(before, _document(alike, timed("onnxruntime", 1, 5.0), lacking("tensorrt_fp16")))
    assert found.regression is False
    assert verdict(found) == "No regression beyond 5 %: rows judged 1, 1 alike."


def test_a_benchmark_against_itself_is_alike_in_every_row_that_has_a_figure() -> None:
    document = json.loads(json.dumps(s1_table().as_dict()))
    found = compare(document, document)
    assert found.regression is None, "two of its rows have no headline"
    assert {row.change for row in found.rows if row.before_ms is not None} == {"alike"}
    assert {row.change for row in found.rows if row.before_ms is None} == {None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"machine": _machine(cpu=CPU)}, "cpu model was A processor and is Another"),
        ({"machine": _machine(gpu={"name": "H200"})}, "gpu name was not told and is H200"),
        ({"settings": {**_document()["settings"], "device": "cuda"}}, "setting: device was cpu and is cuda"),
    ],
)
def test_another_machine_or_setting_is_a_warning_and_no_flag(changes: Document, told: str) -> None:
    found = compare(_document(timed("torch_fp32", 1, 10.0)), _document(timed("torch_fp32", 1, 30.0), **changes))
    assert (found.comparable, found.regression, found.rows[0].change) == (False, None, None)
    assert found.rows[0].ratio == pytest.approx(3.0), "the ratio is still told"
    assert told in found.warnings[0]
    assert verdict(found).startswith("Not judged")


@pytest.mark.parametrize(("after", "why"), [(unstable, "not stable"), (disturbed, "others used 40 %")])
def test_what_was_not_stable_or_not_alone_is_a_warning_and_no_flag(after: Callable[..., Row], why: str) -> None:
    found = compare(_document(timed("torch_fp32", 1, 10.0)), _document(after("torch_fp32", 1, 30.0)))
    (row,) = found.rows
    assert (row.ratio, row.regression, found.regression) == (None, None, None)
    assert f"after: {why}" in row.why_not
    assert found.warnings == (f"PyTorch FP32, batch 1: {row.why_not}",)


def test_a_way_s_notes_are_no_reason_for_a_missing_headline() -> None:
    before = replace(unstable("onnxruntime", 1, 10.0), notes=(RUNNER_NOTE,))
    (row,) = compare(_document(before), _document(disturbed("onnxruntime", 1, 10.0))).rows
    assert row.why_not == f"before: not stable; after: {DISTURBANCE}"


def test_what_was_neither_stable_nor_alone_says_both() -> None:
    row = replace(unstable("onnxruntime", 1, 10.0), notes=(DISTURBANCE,))
    (row_found,) = compare(_document(row), _document(row)).rows
    assert row_found.why_not == f"both: not stable, {DISTURBANCE}"


def test_a_way_that_no_longer_runs_is_a_warning_and_one_that_never_ran_is_none() -> None:
    before = _document(timed("torch_fp32", 1, 10.0), lacking("tensorrt_int8"))
    gone = replace(lacking("torch_fp32"), why_not="out of memory at batch 1")
    found = compare(before, _document(gone, lacking("tensorrt_int8")))
    assert found.warnings == ("PyTorch FP32, batch 1: after: out of memory at batch 1",)


def test_rows_of_one_side_only_are_listed_without_a_warning() -> None:
    found = compare(_document(timed("torch_fp32", 1, 10.0)), _document(timed("onnxruntime", 1, 5.0)))
    assert [(row.way, row.why_not) for row in found.rows] == [
        ("torch_fp32", "after: not in this benchmark"),
        ("onnxruntime", "before: not in this benchmark"),
    ]
    assert found.warnings == ()
    assert verdict(found) == "Not judged: no way has a figure at the same batch size in both."


def test_other_software_and_models_are_noted_and_judged() -> None:
    model = {**_document()["model"], "input_size": [320, 320]}
    machine = _machine(versions={"torch": "2.10.0"})
    after = _document(timed("torch_fp32", 1, 20.0), model=model, machine=machine)
    found = compare(_document(timed("torch_fp32", 1, 10.0)), after)
    assert found.regression is True
    assert "another model: input_size was [640, 640] and is [320, 320]" in found.notes
    assert "another software: versions torch was 2.9.1 and is 2.10.0" in found.notes
    assert "another software: versions onnxruntime was 1.23.2 and is not told" in found.notes


def test_accuracy_is_compared_on_as_many_images_only() -> None:
    def found(images: int) -> Comparison:
        before, after = {"torch_fp32": Accuracy(100, 0.684, 0.572)}, {"torch_fp32": Accuracy(images, 0.674, 0.572)}
        row = timed("torch_fp32", 1, 10.0)
        return compare(_document(row, accuracy=before), _document(row, accuracy=after))

    assert [(one.measure, one.delta) for one in found(100).accuracy] == [
        ("map50", pytest.approx(-0.01)),
        ("map50_95", 0.0),
    ]
    assert [one.delta for one in found(50).accuracy] == [None, None]
    assert found(50).warnings == ("PyTorch FP32: accuracy on 100 images before, on 50 after",)


def test_the_markdown_has_s2s_table_of_the_fastest_way_of_each() -> None:
    model = {**_document()["model"], "params": 2_870_413, "size_bytes": 7_380_000}
    before = _document(timed("torch_fp32", 1, 13.6, device_peak_mib=800.0))
    after = _document(timed("torch_fp32", 1, 12.3), timed("tensorrt_fp16", 1, 10.34, device_peak_mib=20.0), model=model)
    text = comparison_markdown(compare(before, after))
    assert "|  | before: PyTorch FP32 | after: TensorRT FP16 | change |" in text
    assert "| parameters | 3,012,213 | 2,870,413 | -4.7 % |" in text
    assert "| size, MB | 42.00 | 7.380 | -82.4 % |" in text
    assert "| latency, ms | 13.60 | 10.34 | -24.0 % |" in text
    assert "| frames per second | 73.53 | 96.71 | +31.5 % |" in text
    assert "| GPU memory, MiB | 800.0 | 20.00 | -97.5 % |" in text
    assert "| PyTorch FP32 | 1 | 13.60 | 12.30 | 0.904 (0.887 to 0.923) | faster |" in text


def test_names_and_facts_cannot_break_the_markdown() -> None:
    model = {**_document()["model"], "name": "<script>|`x`\n# y", "task": "a | b"}
    text = comparison_markdown(compare(_document(timed("a|b", 1, 5.0)), _document(timed("a|b", 1, 5.0), model=model)))
    assert "\\<script\\>\\|\\`x\\` # y" in text
    assert "| a\\|b | 1 |" in text and "is a \\| b" in text


def test_the_result_is_json() -> None:
    found = compare(_document(timed("torch_fp32", 1, 10.0)), _document(timed("torch_fp32", 1, 30.0), lacking("x")))
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["comparison_version"] == 1
    assert document["rows"][0]["regression"] is True
    assert document["rows"][1]["regression"] is None
    assert document["after"] == {"name": "dfine_x.pt", "params": 3_012_213, "size_bytes": 42_000_000}


def _set(*path: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Any) -> None:
        *above, last = path
        for key in above:
            document = document[key]
        document[last] = value

    return change


REPORT = ("rows", 0, "parts", "end_to_end")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("benchmark_version", value=2), "benchmark_version 1; received: 2"),
        (_set("rows", value={}), "rows is not what it must be; expected: a list of objects"),
        (_set("rows", 0, "way", value=None), "row 1: way is not"),
        (_set("rows", 0, "batch_size", value=True), "batch_size is not"),
        (_set("rows", 0, "headline_ms", value="fast"), "headline_ms is not"),
        (_set("rows", 0, "headline_ms", value=10**400), "headline_ms is not"),
        (_set(*REPORT, "p50_interval_ms", value=[0, 5]), "p50_interval_ms is not"),
        (_set(*REPORT, "p50_interval_ms", value=[11, 12]), "p50_interval_ms is not"),
        (_set(*REPORT, "p50_interval_ms", value=None), "p50_interval_ms is not"),
        (_set("rows", 0, "parts", value={}), "end_to_end is not what it must be; expected: an object"),
        (_set("noise", value=[]), "noise is not what it must be; expected: an object"),
        (_set("machine", value={}), "machine: before is not"),
        (_set("accuracy", value={"torch_fp32": 0.5}), "accuracy: torch_fp32 is not"),
        (_set("model", "params", value=-1), "model: params is not"),
        (lambda document: document["rows"].append(document["rows"][0]), "has a row twice"),
        (dict.clear, "benchmark_version 1; received: none"),
    ],
)
def test_what_is_no_benchmark_is_refused_and_the_place_named(change: Callable[[Document], None], told: str) -> None:
    good, bad = (_document(timed("torch_fp32", 1, 10.0)) for _ in range(2))
    change(bad)
    for pair, side in (((bad, good), "the benchmark before"), ((good, bad), "the benchmark after")):
        with pytest.raises(CorruptFile) as refused:
            compare(*pair)
        assert told in str(refused.value)
        assert side in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b"[]", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"\xff{}"],
)
def test_a_file_that_holds_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile):
        load_benchmark(path)
