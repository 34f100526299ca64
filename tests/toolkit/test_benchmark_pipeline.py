"""A whole benchmark on a CPU: every way is a row, timed after its answers were compared, or with why it was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from app.toolkit.benchmark.accuracy import labelled_images
from app.toolkit.benchmark.pipeline import benchmark
from app.toolkit.benchmark.request import BenchmarkRequest
from app.toolkit.benchmark.result import BenchmarkResult, Row
from app.toolkit.benchmark.source import open_source
from app.toolkit.errors import InvalidAnnotations, InvalidQueries, UnreadableImage
from app.toolkit.latency import LatencySettings
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.open_model import open_model
from app.toolkit.stats import model_stats
from tests.toolkit.fault_data import make_pool
from tests.toolkit.strangers import strangers
from tests.toolkit.trtexec_timing import timing_trtexec

QUICK = LatencySettings(window_calls=3, agreeing_windows=2, max_windows=2, min_window_ms=0, max_seconds=5)
SIDE = 16
HUGE = 10**10
"""Images that no memory holds."""
BEYOND = 10**12
"""Images that no address space holds."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with COCO annotations and crops of their pills in class folders."""
    return make_pool(tmp_path_factory.mktemp("pool"), scenes=3, crops_each=1, seed=77_012)


def asked(model: Path, folder: Path, **changes: object) -> BenchmarkRequest:
    given = {"ways": ("onnxruntime",), "batch_sizes": (1,), "settings": QUICK, "threads": 1}
    return BenchmarkRequest(model, folder, **{**given, **changes})  # type: ignore[arg-type]


def row_of(result: BenchmarkResult, way: str, batch_size: int = 1) -> Row:
    (row,) = (row for row in result.rows if (row.way, row.batch_size) == (way, batch_size))
    return row


# -- graphs made by hand, of images [batch, 3, SIDE, SIDE] --------------------------------------------------------
def graph(folder: Path, name: str, nodes: list[NodeProto], **constants: list[float]) -> Path:
    """`answer` [batch, 3] of `images`, made by the nodes; constants are int64."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 3])
    stored = [helper.make_tensor(key, TensorProto.INT64, [len(one)], one) for key, one in constants.items()]
    model: ModelProto = helper.make_model(
        helper.make_graph(nodes, "g", [images], [answer], stored),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / name)
    return folder / name


def mean_of(source: str, answer: str = "answer") -> NodeProto:
    """Each image's mean colour."""
    return helper.make_node("ReduceMean", [source], [answer], axes=[2, 3], keepdims=0)


def swelling(folder: Path) -> Path:
    """The mean colour, by way of HUGE images more for every image but the first."""
    return graph(
        folder,
        "swelling.onnx",
        [
            helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
            helper.make_node("Sub", ["count", "one"], ["others"]),
            helper.make_node("Mul", ["others", "huge"], ["more"]),
            helper.make_node("Add", ["more", "one"], ["repeats"]),
            helper.make_node("Concat", ["repeats", "image"], ["shape"], axis=0),
            helper.make_node("ReduceMean", ["images"], ["together"], axes=[0], keepdims=1),
            helper.make_node("Expand", ["together", "shape"], ["many"]),
            helper.make_node("Sin", ["many"], ["waves"]),
            helper.make_node("ReduceMax", ["waves"], ["top"], keepdims=0),
            helper.make_node("Sub", ["top", "top"], ["nothing"]),
            mean_of("images", "mean"),
            helper.make_node("Add", ["mean", "nothing"], ["answer"]),
        ],
        one=[1],
        huge=[HUGE],
        image=[3, SIDE, SIDE],
    )


def quantised(folder: Path) -> Path:
    """The mean colour of images in steps of 1/255."""
    return graph(
        folder,
        "int8.onnx",
        [
            helper.make_node("Constant", [], ["scale"], value_float=1 / 255),
            helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("zero", TensorProto.UINT8, [], [0])),
            helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["steps"]),
            helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["stepped"]),
            mean_of("stepped"),
        ],
    )


# -- real models --------------------------------------------------------------------------------------------------
def test_a_detector_is_timed_and_evaluated_in_every_way(tmp_path: Path, pills: Path, pool: Path) -> None:
    heard: list[tuple[str, float]] = []
    request = asked(
        pills,
        tmp_path,
        ways=("torch_fp32", "torch_fp16_graph", "onnxruntime", "tensorrt_fp16"),
        batch_sizes=(1, 2),
        input_size=(320, 320),
        images=pool / "images",
        annotations=pool / "instances.json",
    )
    result = benchmark(request, lambda name, part: heard.append((name, part)))

    timed = [(row.way, row.batch_size) for row in result.rows if row.parts]
    assert timed == [(way, size) for way in ("torch_fp32", "onnxruntime") for size in (1, 2)]
    reasons = {row.way: row.why_not for row in result.rows if not row.parts}
    assert "needs a CUDA GPU" in reasons["torch_fp16_graph"]
    assert "needs an NVIDIA GPU" in reasons["tensorrt_fp16"]

    torch, ort = result.accuracy["torch_fp32"], result.accuracy["onnxruntime"]
    assert torch.images == ort.images == 3
    assert torch.map50_95 is not None and ort.map50_95 is not None and torch.map50_95 > 0.8
    assert abs(torch.map50_95 - ort.map50_95) < 0.002

    agreement = row_of(result, "onnxruntime", 2).agreement
    assert agreement is not None and agreement.ok and 0 < agreement.differences["boxes"] < 0.05
    for row in result.rows:
        base = row_of(result, "torch_fp32", row.batch_size).headline_ms
        assert row.speedup == (base / row.headline_ms if base and row.headline_ms else None)
    assert any("threads" in note for note in row_of(result, "onnxruntime").notes)
    parts = [part for _, part in heard]
    assert heard[0][0] == "torch_fp32, batch 1" and parts == sorted(parts) and parts[0] == 0
    assert result.model["params"] == model_stats(pills).total_params and result.settings["rotating_inputs"] == 8
    assert len(json.dumps(result.as_dict(), allow_nan=False)) > 1000


def test_a_model_without_images_of_its_own_is_timed_on_ours(tmp_path: Path, classifier: Path) -> None:
    result = benchmark(asked(classifier, tmp_path, ways=("torch_fp32",), input_size=(96, 96)))
    assert row_of(result, "torch_fp32").parts
    assert result.accuracy == {} and result.settings["rotating_inputs"] == 8
    assert not any("gave no accuracy" in note for note in result.notes)


def test_class_folders_give_a_classifier_s_top_1(tmp_path: Path, classifier: Path, pool: Path) -> None:
    """From full batches, the last one filled up."""
    ways, images = ("torch_fp32", "onnxruntime"), pool / "crops"
    result = benchmark(asked(classifier, tmp_path, ways=ways, batch_sizes=(5,), input_size=(96, 96), images=images))
    torch, ort = (result.accuracy[way] for way in ways)
    assert torch == ort and torch.images == 12 and torch.map50 is None
    assert torch.top1 is not None and torch.top1 > 0.8


def test_a_sample_is_evaluated_of_what_has_labels(tmp_path: Path, classifier: Path, pool: Path) -> None:
    images = Path(shutil.copytree(pool / "crops", tmp_path / "crops"))
    shutil.copy(next(images.glob("*/*")), images / "of_no_class.jpg")
    for sample, count in ((4, 4), (100, 12)):
        data = labelled_images(asked(classifier, tmp_path, images=images, sample=sample), open_model(classifier))
        assert data is not None and len(data.samples) == count


def test_folders_are_no_labels_for_a_detector(tmp_path: Path, adapter: ModelAdapter, pills: Path, pool: Path) -> None:
    assert labelled_images(asked(pills, tmp_path, images=pool / "crops"), adapter) is None


def test_data_that_gives_no_accuracy_is_noted(tmp_path: Path, classifier: Path, pills: Path, pool: Path) -> None:
    raw = graph(tmp_path, "raw.onnx", [mean_of("images")])
    model = onnx.load(raw)
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1  # so it is no classifier's
    onnx.save(model, raw)
    for path, images, labels, words in (
        (raw, pool / "images", pool / "instances.json", "answers mean is not known"),
        (classifier, pool / "images", None, "takes folders of its classes' names"),
        (pills, pool / "crops", None, "takes COCO annotations"),
        (classifier, pool / "crops", None, "no way's answers could be evaluated"),
    ):
        result = benchmark(asked(path, tmp_path, ways=("tensorrt_fp16",), images=images, annotations=labels))
        (note,) = (note for note in result.notes if "gave no accuracy" in note)
        assert words in note and result.accuracy == {}


# -- data that cannot be, said before anything is timed -------------------------------------------------------------
def test_an_image_that_cannot_be_read_ends_the_benchmark(tmp_path: Path, classifier: Path, pool: Path) -> None:
    images = Path(shutil.copytree(pool / "crops", tmp_path / "crops"))
    (images / sorted(images.iterdir())[0].name / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match="broken"):
        benchmark(asked(classifier, tmp_path, input_size=(96, 96), images=images))


def test_an_image_that_goes_away_costs_the_accuracy_and_no_times(tmp_path: Path, classifier: Path, pool: Path) -> None:
    crops = shutil.copytree(pool / "crops", tmp_path / "crops")
    gone = sorted(crops.glob("*/*"))[-1]
    request = asked(classifier, tmp_path, images=crops)
    result = benchmark(request, progress=lambda _what, _part: gone.unlink(missing_ok=True))
    row = row_of(result, "onnxruntime")
    assert row.parts and not row.why_not and not result.accuracy
    assert [note for note in row.notes if note.startswith("no accuracy: ") and gone.name in note]
    assert "`data` gave no accuracy: no way's answers could be evaluated" in result.notes


def test_annotations_of_other_images_end_the_benchmark(tmp_path: Path, pills: Path, pool: Path) -> None:
    images = Path(shutil.copytree(pool / "images", tmp_path / "images"))
    one = sorted(images.iterdir())[0]
    cv2.imwrite(str(one), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InvalidAnnotations, match="another version"):
        benchmark(asked(pills, tmp_path, images=images, annotations=pool / "instances.json"))


# -- answers that are not equal ---------------------------------------------------------------------------------------
def test_a_graph_that_mixes_the_images_of_a_batch_is_not_timed(tmp_path: Path) -> None:
    mixed = [
        helper.make_node("ReduceMean", ["images"], ["common"], axes=[0], keepdims=1),
        helper.make_node("Add", ["images", "common"], ["mixed"]),
        mean_of("mixed"),
    ]
    result = benchmark(asked(graph(tmp_path, "mixing.onnx", mixed), tmp_path, batch_sizes=(1, 2, 4)))
    assert row_of(result, "onnxruntime", 1).parts
    row = row_of(result, "onnxruntime", 2)
    assert row.why_not.startswith("its answers differ from those of onnxruntime: answer by 0.")
    assert not row.parts and row.headline_ms is None and row.agreement is not None and row.agreement.ok is False
    assert len(result.rows) == 2


def test_answers_that_change_from_call_to_call_are_not_timed(tmp_path: Path) -> None:
    noisy = [
        helper.make_node("RandomNormalLike", ["images"], ["noise"]),
        helper.make_node("Add", ["images", "noise"], ["sum"]),
        mean_of("sum"),
    ]
    (row,) = benchmark(asked(graph(tmp_path, "noisy.onnx", noisy), tmp_path)).rows
    assert "change from one call to the next" in row.why_not and not row.parts


def test_answers_that_are_no_numbers_are_not_timed_nor_compared_with(tmp_path: Path) -> None:
    """An INT8 file may differ, but not in this."""
    nodes = [
        helper.make_node("Sub", ["images", "images"], ["zeros"]),
        helper.make_node("Div", ["zeros", "zeros"], ["none"]),
        mean_of("none"),
    ]
    request = asked(
        graph(tmp_path, "nan.onnx", nodes),
        tmp_path,
        ways=("onnxruntime", "onnxruntime_int8"),
        int8=quantised(tmp_path),
    )
    result = benchmark(request)
    assert row_of(result, "onnxruntime").why_not == "its answers are in part NaN or infinite; nothing was timed"
    assert row_of(result, "onnxruntime_int8").parts


def test_a_reference_in_int8_judges_nobody(tmp_path: Path) -> None:
    request = asked(
        graph(tmp_path, "mean.onnx", [mean_of("images")]),
        tmp_path,
        ways=("onnxruntime_int8", "onnxruntime"),
        int8=quantised(tmp_path),
    )
    agreement = row_of(benchmark(request), "onnxruntime").agreement
    assert agreement is not None and agreement.ok is None and 0 < agreement.differences["answer"] < 1 / 255


def test_a_file_of_another_model_is_not_compared(tmp_path: Path) -> None:
    other = [mean_of("images", "mean"), helper.make_node("Concat", ["mean", "mean"], ["answer"], axis=1)]
    stepped = onnx.load(quantised(tmp_path))
    stepped.graph.node.pop()
    stepped.graph.node.extend([mean_of("stepped", "mean"), other[1]])
    stepped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    onnx.save(stepped, tmp_path / "other.onnx")
    request = asked(
        graph(tmp_path, "mean.onnx", [mean_of("images")]),
        tmp_path,
        ways=("onnxruntime", "onnxruntime_int8"),
        int8=tmp_path / "other.onnx",
    )
    assert "another shape than those of onnxruntime" in row_of(benchmark(request), "onnxruntime_int8").why_not


# -- ways that cannot run -------------------------------------------------------------------------------------------
def test_memory_that_runs_out_ends_its_way_and_nothing_else(tmp_path: Path) -> None:
    request = asked(
        swelling(tmp_path),
        tmp_path,
        ways=("onnxruntime", "onnxruntime_int8"),
        batch_sizes=(1, 2),
        int8=quantised(tmp_path),
    )
    result = benchmark(request)
    timed = [(row.way, row.batch_size) for row in result.rows if row.parts]
    assert timed == [("onnxruntime", 1), *(("onnxruntime_int8", size) for size in (1, 2))]
    row = row_of(result, "onnxruntime", 2)
    assert row.why_not.startswith("out of memory at batch 2: ") and "smaller batch" in row.hint
    assert len(result.rows) == 4


def test_images_that_no_memory_holds_end_their_way_and_lose_no_row(tmp_path: Path) -> None:
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    result = benchmark(asked(path, tmp_path, batch_sizes=(1, BEYOND)))
    assert row_of(result, "onnxruntime", 1).parts
    assert "out of memory" in row_of(result, "onnxruntime", BEYOND).why_not


def test_a_batch_that_the_graph_cannot_run_is_a_reason(tmp_path: Path) -> None:
    """The exporter said that the batch is free, and a Reshape knows better."""
    nodes = [helper.make_node("Reshape", ["images", "lone"], ["shaped"]), mean_of("shaped")]
    path = graph(tmp_path, "lone.onnx", nodes, lone=[1, 3, SIDE, SIDE])
    result = benchmark(asked(path, tmp_path, batch_sizes=(1, 2)))
    assert row_of(result, "onnxruntime", 1).parts
    assert "eshape" in row_of(result, "onnxruntime", 2).why_not


def test_a_fixed_batch_is_timed_where_it_is_among_the_sizes(tmp_path: Path) -> None:
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    result = benchmark(asked(path, tmp_path, batch_sizes=(1, 2, 4)))
    assert [bool(row.parts) for row in result.rows] == [False, True, False]
    assert "batch is fixed; expected batch size 2; batch size 4" in result.rows[2].why_not


def test_an_int8_file_that_does_not_suit_is_a_reason(tmp_path: Path) -> None:
    plain = graph(tmp_path, "mean.onnx", [mean_of("images")])
    large = onnx.load(quantised(tmp_path))
    for axis in large.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = 2 * SIDE
    onnx.save(large, tmp_path / "large.onnx")
    for int8, words in ((plain, "is not quantised"), (tmp_path / "large.onnx", "fixed size")):
        (row,) = benchmark(asked(plain, tmp_path, ways=("onnxruntime_int8",), int8=int8)).rows
        assert words in row.why_not


def test_a_file_that_is_int8_itself_is_not_quantised_again(tmp_path: Path, pool: Path) -> None:
    request = asked(quantised(tmp_path), tmp_path, ways=("onnxruntime_int8",), calibration=pool / "images")
    assert row_of(benchmark(request), "onnxruntime_int8").parts


def test_queries_of_an_exported_file_cannot_be_changed(tmp_path: Path) -> None:
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    with pytest.raises(InvalidQueries, match="fixed"):
        open_source(asked(path, tmp_path, num_queries=100))


# -- what is watched and measured beside -----------------------------------------------------------------------------
def test_beside_busy_strangers_no_row_has_a_headline(tmp_path: Path) -> None:
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    settings = LatencySettings(tolerance_pct=100)  # stable in any case
    with strangers(2):
        result = benchmark(asked(path, tmp_path, settings=settings))
    (row,) = result.rows
    assert row.parts["end_to_end"].stable and row.headline_ms is None and not result.stable
    assert row.images_per_second is row.speedup is row.energy_mj_per_image is None
    assert any("others used" in note for note in row.notes)


def test_the_images_are_not_in_a_row_s_memory(tmp_path: Path) -> None:
    """Eight batches of 12 MiB each."""
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    (row,) = benchmark(asked(path, tmp_path, batch_sizes=(4096,))).rows
    assert row.host_peak_mib is not None and 0 < row.host_peak_mib < 50


def test_trtexec_alone_is_timed_though_torch_sees_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Jetson with a torch of the CPU. Its answers and memory are not seen, so nothing is said of them."""
    place = tmp_path / "bin"
    place.mkdir()
    timing_trtexec(place, "10.3")
    monkeypatch.setenv("PATH", str(place))
    path = graph(tmp_path, "mean.onnx", [mean_of("images")])
    result = benchmark(asked(path, tmp_path, ways=("onnxruntime", "tensorrt_fp16"), device="cuda"))
    assert "without CUDA" in row_of(result, "onnxruntime").why_not
    row = row_of(result, "tensorrt_fp16")
    assert set(row.parts) == {"end_to_end", "compute", "copy_in", "copy_out"}
    assert row.agreement is None and row.host_peak_mib is None and row.device_peak_mib is None
    assert any("random numbers" in note for note in row.notes)
    assert any("of the GPU could not be read" in note for note in result.notes)
    assert {one.name for one in tmp_path.iterdir()} == {"bin", "mean.onnx"}  # the engine went with its use
