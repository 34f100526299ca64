"""Each way of a benchmark runs, answers as the others do, is timed in its parts, or says why it cannot."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper
from torch import nn

from app.toolkit.benchmark.request import WAYS, BenchmarkRequest, Way
from app.toolkit.benchmark.runners import open_runner, why_lacking
from app.toolkit.benchmark.source import open_source, with_batch
from app.toolkit.benchmark.timers import Feeds, host_timer
from app.toolkit.benchmark.torch_runners import TorchRunner, TorchWay
from app.toolkit.errors import FeedMismatch, OutOfMemory, RuntimeUnavailable
from app.toolkit.export import onnx_from_torch
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.images import read_image
from app.toolkit.models.open_model import open_model
from app.toolkit.runtimes.base import Array, TensorSpec
from app.toolkit.runtimes.failures import failures_told, is_out_of_memory
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from tests.toolkit.scenes import ASSETS, make_scenes

SIZES = {"pills_yolov8n.pt": (320, 320), "pills_classifier.pt": (96, 96)}
TOLERANCES = {"torch_fp32": 2e-3, "onnxruntime": 2e-3, "torch_fp16": 4.0, "torch_compile": 2e-3}
"""The largest difference that rounding makes: px of the boxes, logits."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("calibration"), images=4, seed=77_009) / "images"


@pytest.fixture(scope="module")
def free_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's ONNX file, of any batch size."""
    return exported(tmp_path_factory.mktemp("free"), dynamic=True)


@pytest.fixture(scope="module")
def fixed_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's ONNX file, of batch size 1."""
    return exported(tmp_path_factory.mktemp("fixed"), dynamic=False)


def exported(folder: Path, *, dynamic: bool) -> Path:
    model = onnx_from_torch(open_model(ASSETS / "pills_classifier.pt"), input_size=(96, 96), dynamic=dynamic)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def asked(model: Path, folder: Path, **changes: object) -> BenchmarkRequest:
    size = SIZES.get(model.name)
    return BenchmarkRequest(model, folder, **{"input_size": size, "threads": 1, **changes})  # type: ignore[arg-type]


def images_of(request: BenchmarkRequest, photos: Path, count: int) -> Array:
    """Preprocessed photos, [count, C, H, W] float32."""
    source = open_source(request)
    paths = sorted(photos.iterdir())[:count]
    return np.concatenate([source.model.preprocess(read_image(path), source.input_size)[0] for path in paths])


def trained_answer(request: BenchmarkRequest, images: Array) -> Array:
    """The first answer of the network as it was trained, in eager PyTorch."""
    adapter = open_model(request.model)
    specs = adapter.input_specs((images.shape[2], images.shape[3]), len(images))
    with TorchRuntime(adapter.reference_module(), specs, adapter.output_specs(), threads=1) as runtime:
        return next(iter(runtime.infer({specs[0].name: images}).values()))


# -- the ways of a CPU ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param("pills_yolov8n.pt", "torch_fp32", marks=pytest.mark.slow),
        ("pills_yolov8n.pt", "onnxruntime"),
        ("pills_classifier.pt", "torch_fp32"),
        pytest.param("pills_classifier.pt", "torch_fp16", marks=pytest.mark.slow),
        ("pills_classifier.pt", "onnxruntime"),
        pytest.param("pills_yolov8n.pt", "torch_fp16", marks=pytest.mark.slow),
    ],
)
def test_a_way_answers_as_the_trained_network_and_is_timed(tmp_path: Path, photos: Path, name: str, way: Way) -> None:
    request = asked(ASSETS / name, tmp_path)
    source, photographed = open_source(request), images_of(request, photos, 3)
    for images in (photographed[:1], photographed):
        wanted = trained_answer(request, images)
        with open_runner(way, source, request, len(images)) as runner:
            (spec,) = runner.inputs
            assert spec.shape == images.shape and len(runner.outputs) == 1
            (answer,) = runner.infer({spec.name: images}).values()
            assert answer.dtype == np.float32 and answer.shape == wanted.shape
            assert np.abs(answer - wanted).max() < TOLERANCES[way]
            timers = runner.timers([{spec.name: images}, {spec.name: images[::-1].copy()}])
            assert list(timers) == ["end_to_end"]
            assert all(timers["end_to_end"](number) > 0 for number in range(3))
            assert (runner.way, runner.dtype) == (way, "fp16" if way == "torch_fp16" else "fp32")


def test_int8_is_calibrated_once_and_answers_nearly_the_same(tmp_path: Path, photos: Path) -> None:
    request = asked(ASSETS / "pills_classifier.pt", tmp_path, calibration=photos)
    images, source = images_of(request, photos, 3), open_source(request)
    wanted = trained_answer(request, images)
    for batch_size in (1, 3):
        with open_runner("onnxruntime_int8", source, request, batch_size) as runner:
            answer = runner.infer({"input": images[:batch_size]})["logits"]
        assert runner.dtype == "int8"
        assert np.corrcoef(answer.ravel(), wanted[:batch_size].ravel())[0, 1] > 0.9
    assert source.onnx_for(1, "onnxruntime-cpu").graph.node == source.onnx_for(3, "onnxruntime-cpu").graph.node


def test_an_int8_file_stands_for_calibration(tmp_path: Path, photos: Path) -> None:
    made = asked(ASSETS / "pills_classifier.pt", tmp_path, calibration=photos)
    onnx.save(open_source(made).onnx_for(1, "onnxruntime-cpu"), tmp_path / "int8.onnx")
    request = asked(ASSETS / "pills_classifier.pt", tmp_path, int8=tmp_path / "int8.onnx")
    source = open_source(request)
    assert why_lacking("onnxruntime_int8", source, request) == ""
    with open_runner("onnxruntime_int8", source, request, 1) as runner:
        assert runner.dtype == "int8"
    with pytest.raises(FeedMismatch, match="batch is fixed"):
        open_runner("onnxruntime_int8", source, request, 2)


@pytest.mark.slow
def test_a_compiled_network_answers_as_the_eager_one(tmp_path: Path) -> None:
    """Of a network with few operators: compiling takes a second for each."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=4)
    checkpoint = {"backbone": "test_vit", "num_classes": 4, "state_dict": network.state_dict()}
    torch.save(checkpoint, tmp_path / "small.pt")
    request = asked(tmp_path / "small.pt", tmp_path)
    source, answers = open_source(request), []
    images = np.random.default_rng(0).random((2, 3, *source.input_size), dtype=np.float32)
    for way in ("torch_fp32", "torch_compile"):
        with open_runner(way, source, request, 2) as runner:
            answers.append(runner.infer({"input": images})["logits"])
            runner.timers([{"input": images}])  # which completes the notes
    assert np.abs(answers[0] - answers[1]).max() < TOLERANCES["torch_compile"]
    assert [note.split(" took ")[0] for note in runner.notes] == ["torch.compile"]


# -- what a row may not leave behind --------------------------------------------------------------------------------
def test_the_model_and_torch_are_left_as_they_were(tmp_path: Path, photos: Path) -> None:
    before = torch.get_num_threads()
    request = asked(ASSETS / "pills_classifier.pt", tmp_path, threads=before + 1)
    images, source = images_of(request, photos, 1), open_source(request)
    with open_runner("torch_fp16", source, request, 1) as runner:
        assert torch.get_num_threads() == before + 1
        runner.infer({"input": images})
    assert torch.get_num_threads() == before
    assert source.adapter is not None
    assert {one.dtype for one in source.adapter.reference_module().parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="not open"):
        runner.infer({"input": images})


class OneDtypeOnly(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(images, torch.ones(1, 3, 1, 1))


def test_a_network_that_does_not_run_in_fp16_says_so() -> None:
    before = torch.get_num_threads()
    specs = [TensorSpec("images", "float32", (1, 3, 8, 8))], [TensorSpec("answer", "float32", ())]
    runner = TorchRunner(OneDtypeOnly(), *specs, TorchWay(half=True), threads=before + 1)
    with pytest.raises(RuntimeUnavailable, match=r"cannot run the network this way.*RuntimeError"):
        runner.__enter__()
    assert torch.get_num_threads() == before


# -- batch sizes ----------------------------------------------------------------------------------------------------
def test_a_free_batch_takes_every_size(tmp_path: Path, free_batch: Path) -> None:
    request = asked(free_batch, tmp_path)
    source = open_source(request)
    for batch_size in (1, 2):
        with open_runner("onnxruntime", source, request, batch_size) as runner:
            assert runner.inputs[0].shape == (batch_size, 3, 96, 96)
            assert runner.outputs[0].shape == (batch_size, 12)


def test_a_fixed_batch_takes_its_own_size(tmp_path: Path, fixed_batch: Path) -> None:
    request = asked(fixed_batch, tmp_path)
    source = open_source(request)
    with open_runner("onnxruntime", source, request, 1) as runner:
        assert runner.inputs[0].shape[0] == 1
    with pytest.raises(FeedMismatch, match="batch size 1; received: batch size 2"):
        open_runner("onnxruntime", source, request, 2)


def test_setting_the_batch_leaves_the_file_and_its_metadata(free_batch: Path) -> None:
    model = onnx.load(free_batch)
    before = model.SerializeToString()
    fixed = with_batch(model, 4, (96, 96))
    assert [dim.dim_value for dim in fixed.graph.output[0].type.tensor_type.shape.dim] == [4, 12]
    assert fixed.metadata_props == model.metadata_props
    assert model.SerializeToString() == before


def test_a_file_says_itself_what_it_computes_in(tmp_path: Path, free_batch: Path) -> None:
    half = fp16_from_fp32(onnx.load(free_batch))
    onnx.save(half, tmp_path / "half.onnx")
    request = asked(tmp_path / "half.onnx", tmp_path)
    assert open_runner("onnxruntime", open_source(request), request, 1).dtype == "fp16"


def test_feeds_of_another_batch_are_refused_before_they_are_timed(tmp_path: Path, free_batch: Path) -> None:
    request = asked(free_batch, tmp_path)
    with open_runner("onnxruntime", open_source(request), request, 2) as runner, pytest.raises(FeedMismatch):
        runner.timers([{"input": np.zeros((1, 3, 96, 96), np.float32)}])


def test_the_host_s_timer_takes_the_feeds_in_turn_and_tells_how_long_it_took() -> None:
    feeds = [{"images": np.full(1, number)} for number in range(3)]
    seen: list[int] = []

    def run(one: Feeds) -> None:
        seen.append(int(one["images"][0]))
        time.sleep(0.01)

    timer = host_timer(run, feeds)
    assert all(10 <= timer(number) < 1000 for number in range(4))
    assert seen == [0, 1, 2, 0]


# -- why not --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("torch_fp16_graph", "a CUDA graph needs a CUDA GPU"),
        ("torch_fp16_compile_graph", "a CUDA graph needs a CUDA GPU"),
        ("onnxruntime_int8", "calibration images"),
        ("tensorrt_fp16", "needs an NVIDIA GPU"),
        ("tensorrt_int8", "needs an NVIDIA GPU"),
    ],
)
def test_what_a_cpu_lacks(tmp_path: Path, way: Way, words: str) -> None:
    request = asked(ASSETS / "pills_classifier.pt", tmp_path)
    source = open_source(request)
    assert words in why_lacking(way, source, request)
    with pytest.raises(RuntimeUnavailable, match=words):
        open_runner(way, source, request, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_without_a_gpu_nothing_runs_on_one(tmp_path: Path) -> None:
    request = asked(ASSETS / "pills_classifier.pt", tmp_path, device="cuda", calibration=tmp_path)
    source = open_source(request)
    told = {way: why_lacking(way, source, request) for way in WAYS}
    assert all(told.values())
    assert "sees no CUDA GPU" in told["torch_fp32"]
    assert "without CUDA" in told["onnxruntime"]
    assert "INT8 is for the CPU" in told["onnxruntime_int8"]
    assert "neither trtexec nor" in told["tensorrt_fp16"]


def test_an_onnx_file_has_no_way_of_pytorch(tmp_path: Path, free_batch: Path) -> None:
    request = asked(free_batch, tmp_path)
    source = open_source(request)
    told = {way for way in WAYS if "PyTorch runs a .pt" in why_lacking(way, source, request)}
    assert told == {way for way in WAYS if way.startswith("torch")}


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(ASSETS / "pills_classifier.pt", tmp_path)
    source = open_source(request)
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    assert "a-compiler-that-is-not-there is not on the PATH" in why_lacking("torch_compile", source, request)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++ is not on the PATH" in why_lacking("torch_compile", source, request)


# -- memory ---------------------------------------------------------------------------------------------------------
HUGE = 10**10
"""A batch whose images are beyond any address space."""


def test_torch_without_memory_ends_its_row(tmp_path: Path) -> None:
    request = asked(ASSETS / "pills_classifier.pt", tmp_path)
    with (
        pytest.raises(OutOfMemory, match="torch_fp32 at batch size"),
        open_runner("torch_fp32", open_source(request), request, HUGE),
    ):
        pass


def test_onnx_runtime_without_memory_ends_its_row(tmp_path: Path) -> None:
    onnx.save(swelling(), tmp_path / "swelling.onnx")
    request = asked(tmp_path / "swelling.onnx", tmp_path)
    feeds = {"images": np.zeros((1, 3, 64, 64), np.float32)}
    with open_runner("onnxruntime", open_source(request), request, 1) as runner:
        with pytest.raises(OutOfMemory, match=r"onnxruntime at batch size 1.*smaller batch"):
            runner.infer(feeds)
        with pytest.raises(OutOfMemory):
            runner.timers([feeds])["end_to_end"](0)


def swelling() -> ModelProto:
    """An image as often as no memory holds it; how often is an input's affair, so that nothing folds it."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [HUGE, 3, 64, 64])
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    made = helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Expand", ["images", "shape"], ["many"]),
        helper.make_node("Sin", ["many"], ["waves"]),
        helper.make_node("ReduceSum", ["waves"], ["sum"], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "swelling", [given], [made], [shape])
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 1048576",
        "CUDA failure 2: out of memory ; GPU=0",
        "std::bad_alloc",
        "[TRT] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
        "Unable to allocate 11.2 TiB for an array with shape (10000000, 3, 320, 320) and data type float32",
    ],
)
def test_each_library_s_words_for_it(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


def test_a_graph_too_large_to_write_is_a_library_s_failure() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime failed.*Failed to serialize proto"):  # noqa: SIM117
        with failures_told("onnxruntime"):
            raise EncodeError("Failed to serialize proto")


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(RuntimeError("Input type (c10::Half) and bias type (float) should be the same"))
