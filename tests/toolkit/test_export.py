"""An exported file is valid, proven, described, and the right size; a wrong request says what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxslim
import pytest
import torch
from onnx import TensorProto
from torch import nn
from ultralytics import YOLO

from app.toolkit import errors
from app.toolkit.export import _trace, onnx_from_torch
from app.toolkit.images import DEFAULT_IMAGES
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import check, load_onnx, opset_of
from app.toolkit.parity import ParityLimits
from app.toolkit.pipeline import PHASES, ExportResult, export_and_prove
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from tests.toolkit.conftest import MakeModel

ONE_IMAGE = DEFAULT_IMAGES[:1]
SMALL = (64, 96)


def _is_sorted(graph: onnx.GraphProto) -> bool:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if not set(node.input) <= known:
            return False
        known |= set(node.output)
    return True


def test_the_fp32_export_is_proven_on_noise_and_on_real_images(exported: ExportResult) -> None:
    parity = exported.parity
    assert parity["passed"] and not parity["failures"]
    assert [one["kind"] for one in parity["inputs"]] == ["random", "image", "image"]
    assert [one["name"] for one in parity["inputs"]][1:] == ["bus.jpg", "zidane.jpg"]
    assert 0 < parity["boxes_max_abs_px"] < 0.01
    assert 0 < parity["scores_max_abs"] < 2e-5
    assert parity["outputs"]["output0"]["cosine"] > 0.999999
    assert set(parity["outputs"]["output0"]) == {"max_abs", "mean_abs", "mse", "cosine"}
    assert json.loads(exported.parity_path.read_text()) == parity


def test_the_file_is_valid_sorted_and_carries_every_shape(exported: ExportResult) -> None:
    model = load_onnx(exported.path)
    check(model)
    assert _is_sorted(model.graph)
    assert opset_of(model) == exported.opset == 17
    described = {value.name for value in model.graph.value_info} | {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    assert made <= described
    assert exported.inputs[0].as_dict() == {"name": "images", "dtype": "float32", "shape": [1, 3, 640, 640]}
    assert exported.outputs[0].as_dict() == {"name": "output0", "dtype": "float32", "shape": [1, 16, 8400]}


def test_nothing_but_the_model_and_its_report_is_left_behind(exported: ExportResult) -> None:
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["pills_fp32.onnx", "pills_fp32_parity.json"]


def test_stats_come_with_the_export(exported: ExportResult) -> None:
    assert set(exported.stats) == {"size_mb", "total_params", "nonzero_params", "sparsity_pct"}
    assert exported.stats["size_mb"] == round(exported.path.stat().st_size / 1e6, 2)
    assert 3_000_000 < exported.stats["nonzero_params"] <= exported.stats["total_params"] < 3_013_188


def test_the_phases_are_reported_in_order_and_timed(make_model: MakeModel, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    result = export_and_prove(
        make_model("yolov8n"),
        tmp_path / "a.onnx",
        input_size=SMALL,
        images=ONE_IMAGE,
        progress=lambda phase, fraction: heard.append((phase, fraction)),
    )
    assert heard == [(phase, fraction) for phase in PHASES for fraction in (0.0, 1.0)]
    assert tuple(result.seconds) == PHASES
    assert all(seconds > 0 for seconds in result.seconds.values())


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_one_round_of_slimming_leaves_no_more_nodes_than_onnxslim_itself(name: str, make_model: MakeModel) -> None:
    adapter = open_model(make_model(name))
    ours = onnx_from_torch(adapter, input_size=SMALL)
    theirs = onnxslim.slim(_trace(adapter, SMALL, 1, 17, False))
    assert len(ours.graph.node) <= len(theirs.graph.node)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n-seg", "yolo11n-pose", "yolov8n-obb", "yolo11n-cls"])
def test_every_task_exports_and_proves_itself(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    result = export_and_prove(make_model(name), tmp_path / f"{name}.onnx", input_size=(128, 160), images=ONE_IMAGE)
    assert result.parity["passed"]
    assert len(result.outputs) == (2 if name.endswith("seg") else 1)


@pytest.mark.parametrize("name", ["yolo26n", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolov10n"])
def test_an_end_to_end_head_is_proven_with_its_classes(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    path = end_to_end(make_model(name), tmp_path / f"{name}.pt")
    cv2.imwrite(str(tmp_path / "noise.png"), np.random.default_rng(1).integers(0, 255, (320, 320, 3), dtype=np.uint8))
    images = [tmp_path / "noise.png"]
    result = export_and_prove(path, tmp_path / "a.onnx", input_size=(320, 320), images=images, threads=1)
    assert result.outputs[0].shape[1:2] == (300,)
    measured = result.parity["inputs"][-1]["parts"]
    assert measured["classes_paired"]["max_abs"] == 0 and measured["classes"]["reference_max_abs"] > 10


def end_to_end(source: Path, target: Path) -> Path:
    """The untrained network with its one-to-one head, its norms fitted to noise, so that it lets an image through."""
    content = torch.load(source, weights_only=False)
    network = content["model"].float().eval()
    head = network.model[-1]
    head.end2end = True
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train().reset_running_stats()
    with torch.no_grad():
        network(torch.rand(4, 3, 320, 320, generator=torch.Generator().manual_seed(0)))
        for level in head.one2one_cv3:
            level[-1].weight.mul_(0.3)
            level[-1].bias.fill_(-5)
    torch.save({**content, "model": network.half().eval()}, target)
    return target


def test_yolo_itself_runs_the_file_from_its_metadata(exported: ExportResult, pills: Path) -> None:
    image = str(DEFAULT_IMAGES[0])
    model = YOLO(str(exported.path), task=None)
    (ours,) = model.predict(image, conf=0.01, verbose=False, device="cpu")
    (theirs,) = YOLO(str(pills)).predict(image, conf=0.01, rect=False, verbose=False, device="cpu")
    assert model.task == "detect"
    assert ours.names == theirs.names and ours.names[0] == "641100010"
    assert len(ours.boxes) == len(theirs.boxes) > 0
    assert torch.allclose(ours.boxes.xyxy, theirs.boxes.xyxy, atol=0.1)
    metadata = {entry.key: entry.value for entry in load_onnx(exported.path).metadata_props}
    assert metadata["stride"] == "32" and metadata["imgsz"] == "[640, 640]" and metadata["batch"] == "1"


def test_fp16_is_half_the_size_with_float32_at_both_ends(exported: ExportResult, exported_fp16: ExportResult) -> None:
    assert 0.49 < exported_fp16.path.stat().st_size / exported.path.stat().st_size < 0.52
    assert [spec.dtype for spec in (*exported_fp16.inputs, *exported_fp16.outputs)] == ["float32", "float32"]
    model = load_onnx(exported_fp16.path)
    check(model)
    assert _is_sorted(model.graph)
    weights = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 100]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    assert dict(exported_fp16.model_stats.dtypes) == {"float16": exported_fp16.stats["total_params"]}


def test_fp16_is_judged_where_a_detection_could_be(exported_fp16: ExportResult) -> None:
    parity = exported_fp16.parity
    assert parity["passed"]
    assert parity["boxes_detectable_max_abs_px"] < 1.0 <= parity["limits"]["boxes_px"]
    assert parity["scores_max_abs"] < 1e-2
    assert all(difference["non_finite"] == 0 for one in parity["inputs"] for difference in one["outputs"].values())


def test_weights_beyond_fp16_are_refused_by_name(make_model: MakeModel, tmp_path: Path) -> None:
    content = torch.load(make_model("yolov8n"), weights_only=False)
    network = content["model"].float()
    network.model[0].bn.weight.data[0] = 1e9
    torch.save({"model": network}, tmp_path / "huge.pt")
    with pytest.raises(errors.NotFinite, match=r"model\.0\.conv\.weight") as caught:
        export_and_prove(tmp_path / "huge.pt", tmp_path / "huge.onnx", precision="fp16", input_size=SMALL)
    assert "fp32" in caught.value.hint
    assert not (tmp_path / "huge.onnx").exists()


def test_nan_in_the_checkpoint_is_told_apart_from_a_bad_export(make_model: MakeModel, tmp_path: Path) -> None:
    content = torch.load(make_model("yolov8n"), weights_only=False)
    content["model"].model[0].conv.weight.data[0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(errors.NotFinite, match="NaN or infinite"):
        export_and_prove(tmp_path / "nan.pt", tmp_path / "nan.onnx", input_size=SMALL, images=ONE_IMAGE)
    assert not (tmp_path / "nan.onnx").exists()
    assert json.loads((tmp_path / "nan_parity.json").read_text())["passed"] is False


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_a_dynamic_file_runs_at_other_sizes_and_batches(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(name)
    result = export_and_prove(source, tmp_path / "d.onnx", input_size=SMALL, images=ONE_IMAGE, dynamic=True)
    assert result.inputs[0].shape == ("batch", 3, "height", "width")
    assert "random, another size" in [one["name"] for one in result.parity["inputs"]]
    network = open_model(source).reference_module()
    with OrtRuntime(result.path) as runtime:
        for batch, height, width in ((1, 64, 64), (3, 128, 96)):
            images = np.random.default_rng(5).random((batch, 3, height, width), dtype=np.float32)
            answer = runtime.infer({"images": images})["output0"]
            with torch.inference_mode():
                wanted = network(torch.from_numpy(images)).numpy()
            assert answer.shape == wanted.shape
            assert np.abs(answer - wanted).max() < 0.01


def test_a_batch_is_filled_from_the_images(make_model: MakeModel, tmp_path: Path) -> None:
    result = export_and_prove(make_model("yolov8n"), tmp_path / "b.onnx", input_size=SMALL, batch_size=4)
    assert result.inputs[0].shape == (4, 3, *SMALL)
    assert [one["name"] for one in result.parity["inputs"]] == ["random", "bus.jpg, zidane.jpg"]


@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels_export(channels: int, make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model("yolov8n", channels)
    result = export_and_prove(source, tmp_path / "c.onnx", input_size=SMALL, channels=channels, images=ONE_IMAGE)
    assert result.inputs[0].shape == (1, channels, *SMALL)
    with pytest.raises(errors.ChannelsMismatch, match=f"first layer takes {channels} channels") as caught:
        export_and_prove(source, tmp_path / "no.onnx", input_size=SMALL)
    assert caught.value.expected == f"channels = {channels}" and caught.value.received == "channels = 3"
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        ((641, 640), "[640, 640] or [672, 640]"),
        ((20, 33), "[32, 32] or [32, 64]"),
        ((0, 64), "[32, 64]"),
    ],
)
def test_a_size_off_the_stride_names_the_nearest_ones(size: tuple[int, int], hint: str, adapter: ModelAdapter) -> None:
    with pytest.raises(errors.InvalidInputSize, match="multiple of the model's stride 32") as caught:
        adapter.check_input(size, 3)
    assert caught.value.hint == hint


def test_an_impossible_opset_names_the_possible_ones(adapter: ModelAdapter) -> None:
    with pytest.raises(errors.UnsupportedOpset, match="from 11 to 20"):
        onnx_from_torch(adapter, input_size=SMALL, opset=99)


def test_an_operator_that_the_opset_lacks_says_try_opset_18(make_model: MakeModel, tmp_path: Path) -> None:
    content = torch.load(make_model("yolov8n"), weights_only=False)
    content["model"].model[0].act = torch.nn.Sequential(torch.nn.Unfold(1), torch.nn.Fold((32, 48), 1))
    source, target = tmp_path / "fold.pt", tmp_path / "fold.onnx"
    torch.save(content, source)
    with pytest.raises(errors.ExportFailed, match="col2im") as caught:
        export_and_prove(source, target, input_size=SMALL, images=ONE_IMAGE)
    assert caught.value.hint == "try opset 18"
    assert not target.exists()
    assert export_and_prove(source, target, input_size=SMALL, images=ONE_IMAGE, opset=18).parity["passed"]


def test_a_difference_over_the_limit_fails_with_the_numbers_and_leaves_no_model(pills: Path, tmp_path: Path) -> None:
    tight = ParityLimits(boxes_px=1e-9, scores=1e-12, values=1e-9, random_factor=1.0)
    with pytest.raises(errors.ParityFailed, match=r"bus\.jpg: boxes differ by [0-9.e-]+ px, limit 1e-09 px") as caught:
        export_and_prove(pills, tmp_path / "x.onnx", input_size=SMALL, limits=tight)
    assert caught.value.report["boxes_max_abs_px"] > 1e-9
    assert not (tmp_path / "x.onnx").exists()
    assert json.loads((tmp_path / "x_parity.json").read_text())["passed"] is False


def test_a_proof_needs_an_image(pills: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.NoImages):
        export_and_prove(pills, tmp_path / "x.onnx", images=[])


def test_an_unreadable_image_is_named(pills: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(errors.UnreadableImage, match=r"broken\.jpg"):
        export_and_prove(pills, tmp_path / "x.onnx", input_size=SMALL, images=[tmp_path / "broken.jpg"])


def test_the_same_model_gives_the_same_graph(make_model: MakeModel) -> None:
    first, second = (onnx_from_torch(open_model(make_model("yolov8n")), input_size=SMALL) for _ in range(2))
    assert first.graph.SerializeToString(deterministic=True) == second.graph.SerializeToString(deterministic=True)


def test_the_adapter_is_unchanged_by_an_export(make_model: MakeModel) -> None:
    adapter = open_model(make_model("yolov8n"))
    image = torch.rand(1, 3, *SMALL, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = adapter.reference_module()(image)
        onnx_from_torch(adapter, input_size=SMALL)
        assert torch.equal(adapter.reference_module()(image), before)
