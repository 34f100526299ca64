"""One contract for every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from app.toolkit.errors import FeedMismatch, RuntimeUnavailable
from app.toolkit.runtimes.base import Runtime, TensorSpec
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime

MakeRuntime = Callable[[], Runtime]


class _SumAndDouble(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first + second, first * 2


def _onnx_bytes() -> bytes:
    shape: list[str | int | None] = ["batch", 2]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("first", "second")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sum", "double")]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("Mul", ["first", "two"], ["double"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [two])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _torch() -> Runtime:
    def specs(*names: str) -> list[TensorSpec]:
        return [TensorSpec(name, "float32", ("batch", 2)) for name in names]

    return TorchRuntime(_SumAndDouble(), specs("first", "second"), specs("sum", "double"), threads=1)


def _ort() -> Runtime:
    return OrtRuntime(_onnx_bytes(), threads=1)


@pytest.fixture(params=[_torch, _ort], ids=["torch", "onnxruntime"])
def make_runtime(request: pytest.FixtureRequest) -> MakeRuntime:
    made: MakeRuntime = request.param
    return made


FEEDS = {"first": np.ones((3, 2), np.float32), "second": np.full((3, 2), 4, np.float32)}


def test_it_knows_its_inputs_and_outputs_before_it_is_opened(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    assert [spec.as_dict() for spec in runtime.inputs] == [
        {"name": name, "dtype": "float32", "shape": ["batch", 2]} for name in ("first", "second")
    ]
    assert [spec.name for spec in runtime.outputs] == ["sum", "double"]


def test_it_answers_by_name(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        answers = runtime.infer(FEEDS)
    assert list(answers) == ["sum", "double"]
    assert np.array_equal(answers["sum"], np.full((3, 2), 5, np.float32))
    assert np.array_equal(answers["double"], np.full((3, 2), 2, np.float32))


def test_it_answers_again_and_for_another_batch(make_runtime: MakeRuntime) -> None:
    with make_runtime() as runtime:
        runtime.infer(FEEDS)
        answers = runtime.infer({name: array[:1] for name, array in FEEDS.items()})
    assert answers["sum"].shape == (1, 2)


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
    make_runtime: MakeRuntime, feeds: dict[str, np.ndarray], sentence: str
) -> None:
    with make_runtime() as runtime, pytest.raises(FeedMismatch, match=sentence):
        runtime.infer(feeds)


def test_it_must_be_open(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with pytest.raises(RuntimeError, match="not open"):
        runtime.infer(FEEDS)
    with runtime:
        runtime.infer(FEEDS)
    with pytest.raises(RuntimeError, match="not open"):
        runtime.infer(FEEDS)


def test_torch_gives_back_the_thread_count() -> None:
    before = torch.get_num_threads()
    with _torch():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_onnx_runtime_records_which_providers_it_was_asked_for_and_took() -> None:
    runtime = OrtRuntime(_onnx_bytes(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert runtime.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert "CPUExecutionProvider" in runtime.used_providers


def test_onnx_runtime_names_the_providers_it_has() -> None:
    with pytest.raises(RuntimeUnavailable, match="CPUExecutionProvider"):
        OrtRuntime(_onnx_bytes(), providers=["NoSuchExecutionProvider"])


def test_onnx_runtime_reads_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_onnx_bytes())
    with OrtRuntime(tmp_path / "m.onnx", threads=1) as runtime:
        assert runtime.infer(FEEDS)["sum"][0, 0] == 5


def test_onnx_runtime_says_what_it_dislikes() -> None:
    with pytest.raises(RuntimeUnavailable, match="refused the model"):
        OrtRuntime(b"no model")
