"""One contract for every runtime. TensorRT is the double's, which shows our calls and not TensorRT's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.toolkit.errors import FeedMismatch, RuntimeUnavailable
from app.toolkit.runtimes.base import Runtime
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from tests.toolkit.runtimes import FEEDS, ort_runtime, torch_runtime, trt_runtime

MakeRuntime = Callable[[], Runtime]
RELEASES = ("8.2.1", "8.6.1", "10.3.0", "11.4.0.106")


@pytest.fixture(params=["torch", "onnxruntime", *RELEASES])
def make_runtime(request: pytest.FixtureRequest, tmp_path: Path) -> MakeRuntime:
    others: dict[str, MakeRuntime] = {"torch": torch_runtime, "onnxruntime": ort_runtime}
    return others.get(request.param, lambda: trt_runtime(tmp_path, request.param))


def test_it_knows_its_inputs_and_outputs_before_it_is_opened(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    assert [(spec.name, spec.dtype) for spec in runtime.inputs] == [("first", "float32"), ("second", "float32")]
    assert [spec.name for spec in runtime.outputs] == ["sum", "double"]
    for spec in (*runtime.inputs, *runtime.outputs):
        batch, width = spec.shape
        assert isinstance(batch, str) and width == 2


def test_it_answers_by_name(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        answers = runtime.infer(FEEDS)
    assert list(answers) == ["sum", "double"]
    assert np.array_equal(answers["sum"], np.full((3, 2), 5, np.float32))
    assert np.array_equal(answers["double"], np.full((3, 2), 2, np.float32))
    assert {answer.dtype.name for answer in answers.values()} == {"float32"}


def test_it_answers_again_and_for_another_batch(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        shapes = []
        for count in (3, 1, 4, 3):
            feeds = {name: np.resize(array, (count, 2)) for name, array in FEEDS.items()}
            answers = runtime.infer(feeds)
            shapes.append(answers["sum"].shape)
            assert np.array_equal(answers["sum"], feeds["first"] + feeds["second"])
    assert shapes == [(3, 2), (1, 2), (4, 2), (3, 2)]


def test_an_answer_is_the_callers_own(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        first = runtime.infer(FEEDS)["sum"]
        runtime.infer({name: array + 1 for name, array in FEEDS.items()})
    assert np.array_equal(first, np.full((3, 2), 5, np.float32))


def test_it_takes_arrays_that_lie_otherwise_in_memory(make_runtime: MakeRuntime) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with make_runtime() as runtime:
        answers = runtime.infer({"first": turned, "second": turned})
    assert np.array_equal(answers["double"], turned * 2)


def test_it_leaves_its_feeds_as_they_were(make_runtime: MakeRuntime) -> None:
    feeds = {name: array.copy() for name, array in FEEDS.items()}
    with make_runtime() as runtime:
        runtime.infer(feeds)
    assert all(np.array_equal(feeds[name], FEEDS[name]) for name in FEEDS)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"first": FEEDS["first"]}, "names do not match; expected: first, second; received: first"),
        ({**FEEDS, "third": FEEDS["first"]}, "names do not match"),
        (
            {**FEEDS, "second": FEEDS["second"].astype(np.float64)},
            "input second has the wrong dtype; expected: float32",
        ),
        ({**FEEDS, "second": np.zeros((3, 5), np.float32)}, "input second has the wrong shape"),
        ({**FEEDS, "second": np.zeros(2, np.float32)}, "input second has the wrong shape"),
    ],
)
def test_it_refuses_wrong_feeds_in_the_same_words(
    make_runtime: MakeRuntime, feeds: dict[str, np.ndarray[Any, Any]], sentence: str
) -> None:
    with make_runtime() as runtime, pytest.raises(FeedMismatch, match=sentence):
        runtime.infer(feeds)


def test_it_answers_after_it_refused(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        with pytest.raises(FeedMismatch):
            runtime.infer({})
        assert runtime.infer(FEEDS)["sum"][0, 0] == 5


def test_it_must_be_open(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with pytest.raises(RuntimeError, match="not open"):
        runtime.infer(FEEDS)
    with runtime:
        runtime.infer(FEEDS)
    with pytest.raises(RuntimeError, match="not open"):
        runtime.infer(FEEDS)


def test_what_was_closed_is_not_opened_again(tmp_path: Path) -> None:
    """Torch's module outlives its runtime; a session and an engine do not."""
    for runtime in (ort_runtime(), trt_runtime(tmp_path)):
        with runtime:
            runtime.infer(FEEDS)
        with pytest.raises(RuntimeError, match="closed and cannot be opened again"), runtime:
            pass


# -- torch ----------------------------------------------------------------------------------------------------------
def test_torch_gives_back_the_thread_count() -> None:
    before = torch.get_num_threads()
    with torch_runtime():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_torch_says_that_a_gpu_is_not_there(device: str) -> None:
    if device != "cuda:99" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeUnavailable, match=f"torch has no {device} here"):
        torch_runtime(device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torch_on_a_gpu_keeps_fp32_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3)).eval()
    feeds = {"images": np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)}
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    answers = []
    for device in ("cpu", "cuda"):
        with torch_runtime(module, device=device) as runtime:
            answers.append(runtime.infer(feeds)["answer"])
            assert isinstance(runtime, TorchRuntime)
    assert np.abs(answers[0] - answers[1]).max() < 1e-5  # TF32 is off by 1e-3
    assert next(module.parameters()).device.type == "cpu"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


# -- ONNX Runtime ---------------------------------------------------------------------------------------------------
def test_onnx_runtime_reads_a_file_too(tmp_path: Path) -> None:
    trt_runtime(tmp_path)
    with OrtRuntime(tmp_path / "m.onnx", threads=1) as runtime:
        assert runtime.infer(FEEDS)["sum"][0, 0] == 5


def test_onnx_runtime_says_what_it_dislikes() -> None:
    with pytest.raises(RuntimeUnavailable, match="refused the model"):
        OrtRuntime(b"no model")
