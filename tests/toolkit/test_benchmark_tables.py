"""S1's and S2's tables from a benchmark's figures, as Markdown and as a page."""

from __future__ import annotations

import base64
from dataclasses import replace

from app.toolkit.benchmark.html import benchmark_html
from app.toolkit.benchmark.pictures import benchmark_pictures
from app.toolkit.benchmark.result import Agreement, Part, Row
from app.toolkit.benchmark.tables import benchmark_markdown, verdict
from app.toolkit.latency import LatencyReport
from tests.toolkit.benchmark_results import benchmark_of, disturbed, lacking, report, s1_table, timed, unstable
from tests.toolkit.test_verification_html import Page

UNQUOTED = disturbed("torch_fp16", 1, 10.0)
ATTACK = '"><script>alert(1)</script> | `x` {{ 7 * 7 }}.pt'


def _line(markdown: str, name: str) -> str:
    """The first row of a table that begins with this name."""
    return next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))


def test_the_first_way_is_one_and_the_others_are_told_in_its_terms() -> None:
    text = benchmark_markdown(s1_table())
    assert _line(text, "PyTorch FP32") == "| PyTorch FP32 | 71.20 (70.49 to 71.91) | 14.04 | 0.684 | 0.572 | 1x |  |"
    assert (
        _line(text, "TensorRT FP16") == "| TensorRT FP16 | 12.98 (12.85 to 13.11) | 77.04 | 0.682 | 0.565 | 5.49x |  |"
    )


def test_what_was_not_stable_or_not_alone_shows_its_range_and_no_figure() -> None:
    text = benchmark_markdown(s1_table())
    assert _line(text, "torch.compile") == "| torch.compile | not stable: 47.90 to 71.84 | - | 0.684 | 0.572 | - |  |"
    row = _line(text, "ONNX Runtime")
    assert "| disturbed: 64.34 to 65.64 | - |" in row
    assert "others used 40 %" in row
    assert "59.87" not in text and "64.99" not in text


def test_copies_that_were_not_stable_say_so_and_leave_the_headline() -> None:
    parts: dict[Part, LatencyReport] = {"end_to_end": report(10.0), "copy_in": report(1.0, stable=False)}
    text = benchmark_markdown(benchmark_of(replace(timed("torch_fp16", 1, 10.0), parts=parts)))
    assert "not stable: 9.900 to 10.10" not in text
    assert "| copy in, ms |" in text and "| not stable: 0.9900 to 1.010 | - | - | 10.00 |" in text


def test_a_row_without_a_headline_has_ranges_in_every_part_and_no_energy() -> None:
    parts: dict[Part, LatencyReport] = {"end_to_end": report(10.0), "compute": report(8.0)}
    rows = [replace(row, parts=parts, energy_mj_per_image=123.0) for row in (timed("torch_fp32", 1, 10.0), UNQUOTED)]
    text = benchmark_markdown(benchmark_of(*rows))
    assert "| PyTorch FP32 | 1 | - | 8.000 | - | 10.00 |" in text
    assert "| PyTorch FP16 | 1 | - | 7.920 to 8.080 | - | 9.900 to 10.10 |" in text
    assert _line(text, "PyTorch FP32 | 1 | 10.10 | 10.10 | 10.10").endswith("| 123.0 |")
    assert _line(text, "PyTorch FP16 | 1 | - | - | -").endswith("| - |")


def test_where_nothing_ran_at_the_first_batch_size_the_next_is_shown() -> None:
    agreement = Agreement(True, {"boxes": 0.012}, {"boxes": 0.5})
    rows = [
        *(Row(way, 1, why_not="the file's batch is 4") for way in ("onnxruntime", "onnxruntime_int8")),
        timed("onnxruntime", 4, 20.0, agreement=agreement),
        timed("onnxruntime_int8", 4, 10.0, first_ms=20.0, agreement=agreement),
        lacking("tensorrt_fp16"),
    ]
    result = benchmark_of(*rows)
    text = benchmark_markdown(result)
    assert verdict(result) == "Fastest at batch 4: ONNX Runtime INT8, 10.00 ms, 2x the first way's speed."
    assert "## By way, batch 4\n" in text and "## Before and after, batch 4\n" in text
    assert _line(text, "ONNX Runtime INT8") == "| ONNX Runtime INT8 | 10.00 (9.900 to 10.10) | 400.0 | 2x |  |"
    assert "TensorRT is not installed" in _line(text, "TensorRT FP16"), "what ran at no size keeps its row"
    assert "| ONNX Runtime | yes | boxes 0.012 of 0.5 |" in text


def test_the_batch_size_shown_is_the_smallest_with_a_headline_else_the_smallest_that_was_timed() -> None:
    doubtful = [unstable("torch_fp32", 1, 5.0), disturbed("torch_fp16", 1, 4.0)]
    text = benchmark_markdown(benchmark_of(*doubtful, timed("torch_fp16", 2, 6.0)))
    assert "Fastest at batch 2: PyTorch FP16, 6.000 ms. The machine was too noisy for 2 of 3 figures:" in text
    assert "## By way, batch 2\n" in text
    text = benchmark_markdown(benchmark_of(Row("onnxruntime", 1, why_not="no"), unstable("onnxruntime", 4, 5.0)))
    assert "## By way, batch 4\n" in text and "| ONNX Runtime | not stable: " in text
    assert "## By way, batch 2\n" in benchmark_markdown(benchmark_of(lacking("tensorrt_fp16", 2)))


def test_what_could_not_run_says_why_in_its_row() -> None:
    text = benchmark_markdown(s1_table())
    assert "TensorRT is not installed \\| here; install tensorrt |" in _line(text, "TensorRT INT8")
    assert "| 8 | - | - | - | out of memory at batch 8; take a smaller batch |" in text


def test_the_batch_table_is_s1s() -> None:
    text = benchmark_markdown(s1_table())
    assert "## By batch size, PyTorch FP16\n" in text
    assert "## By batch size, PyTorch FP32\n" not in text, "one size is no sweep"
    assert "| 16 | 387.9 (384.0 to 391.7) | 41.25 |" in text


def test_slow_calls_and_memory_have_their_table() -> None:
    text = benchmark_markdown(s1_table())
    assert "| PyTorch FP16 | 4 | 104.1 | 104.1 | 104.1 | 760.0 |" in text
    assert "| torch.compile | 1 | - | - | - | - |" in text, "no percentile of what was not stable"


def test_how_many_images_the_accuracy_is_of_is_told() -> None:
    assert "Accuracy was measured on 100 images." in benchmark_markdown(s1_table())
    assert "Accuracy was" not in benchmark_markdown(benchmark_of(timed("torch_fp32", 1, 5.0)))


def test_before_and_after_have_their_change() -> None:
    text = benchmark_markdown(s1_table())
    assert "| latency, ms | 71.20 | 12.98 | -81.8 % |" in text
    assert "| frames per second | 14.04 | 77.04 | +448.5 % |" in text
    assert "| GPU memory, MiB | 900.0 | 150.0 | -83.3 % |" in text
    assert "Before and after" not in benchmark_markdown(benchmark_of(timed("torch_fp32", 1, 5.0)))


def test_columns_and_tables_without_a_figure_are_left_out() -> None:
    text = benchmark_markdown(benchmark_of(timed("torch_fp32", 1, 5.0, first_ms=5.0)))
    assert "mAP" not in text and "top-1" not in text and "Where the time goes" not in text and "| GPU |" not in text


def test_the_verdict_claims_no_more_than_the_rows_do() -> None:
    assert verdict(benchmark_of(lacking("tensorrt_fp16"))) == "Nothing could be timed here; the table says why."
    nothing = verdict(benchmark_of(unstable("torch_fp32", 1, 5.0), disturbed("torch_fp16", 1, 4.0)))
    assert nothing == "The machine was too noisy for every figure: do not quote them."
    doubt = "The machine was too noisy for 2 of 11 figures: do not quote them."
    assert verdict(s1_table()).endswith(f"5.49x the first way's speed. {doubt}")


def test_wrong_answers_are_shown_beside_their_limit() -> None:
    wrong = Agreement(False, {"boxes": 12.0}, {"boxes": 0.5})
    row = replace(lacking("torch_fp16"), agreement=wrong, why_not="its answers are not the first way's")
    text = benchmark_markdown(benchmark_of(timed("torch_fp32", 1, 5.0), row))
    assert "| PyTorch FP16 | no | boxes 12 of 0.5 |" in text


def test_names_cannot_break_the_markdown() -> None:
    text = benchmark_markdown(s1_table(model={"name": ATTACK}, notes=("a | b\nc",)))
    assert "<script" not in text.replace("\\<script", "")
    assert "- a \\| b c\n" in text


def test_the_page_opens_offline_and_runs_nothing() -> None:
    result = s1_table(model={"name": ATTACK})
    pictures = benchmark_pictures(result)
    source = benchmark_html(result, pictures)
    page = Page(source)
    assert page.open == []
    assert ATTACK in page.text
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert [base64.b64decode(image.partition("base64,")[2]) for image in images] == list(pictures.values())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "a"}
    assert "http://" not in source and "https://" not in source


def test_the_page_has_every_table_of_the_markdown() -> None:
    result = s1_table(notes=("a note",))
    text = Page(benchmark_html(result, {})).text
    for line in benchmark_markdown(result).splitlines():
        if line.startswith("## "):
            assert line[3:] in text
    assert "12.98 (12.85 to 13.11)" in text and "a note" in text and "A processor" in text
