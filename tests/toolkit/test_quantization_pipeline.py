"""The whole quantisation on the pills model: what is proven, what is refused, what is written when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.toolkit.coco import read_coco
from app.toolkit.errors import AccuracyDropped, FeedMismatch, InvalidInputSize, NoImages
from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx
from app.toolkit.quantization.pipeline import quantize
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import RaceSettings
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from tests.toolkit.outliers import with_outlier
from tests.toolkit.scenes import make_scenes

SIZE = (320, 320)
QUICK = RaceSettings(rounds=1, calls=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), images=24, seed=31)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory, pills: Path) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "best.onnx"
    onnx.save(onnx_from_torch(open_model(pills), input_size=SIZE), path)
    return path


@pytest.fixture
def request_(fp32: Path, scenes: Path, tmp_path: Path) -> QuantizationRequest:
    result = tmp_path / "best_int8.onnx"
    return QuantizationRequest(fp32, result, images=scenes / "images", num_samples=8, threads=2, race=QUICK)


def _report(request: QuantizationRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((request.result.parent / "best_int8_report.json").read_text())
    return document


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime-cpu"])
def test_both_targets_keep_their_promise(request_: QuantizationRequest, target: Any) -> None:
    result = quantize(replace(request_, target=target))
    assert result.accuracy is not None
    assert (result.accuracy.measure, result.accuracy.images) == ("detection_agreement", 16)
    assert result.accuracy.after > 0.9
    assert [one["clean"] for one in [result.lint.as_dict()]] == [
        dict.fromkeys(("8.5", "8.6", "10", "11"), target == "tensorrt")
    ]
    assert len(result.nodes.quantised) > 50
    assert _report(request_) == json.loads(json.dumps(result.as_dict()))
    with OrtRuntime(request_.result) as runtime:
        answer = runtime.infer({"images": np.zeros((1, 3, *SIZE), np.float32)})
    assert np.isfinite(answer["output0"]).all()


def test_labelled_images_that_calibrated_prove_nothing(request_: QuantizationRequest, scenes: Path) -> None:
    data = read_coco(scenes / "instances.json", scenes / "images")
    result = quantize(replace(request_, data=data))
    assert result.accuracy is not None
    assert (result.accuracy.measure, result.accuracy.images) == ("map50_95", 16)
    assert result.accuracy.map50_before is not None
    assert any("8 images of the proof calibrated" in warning for warning in result.warnings)


@pytest.mark.slow
def test_copies_of_calibration_images_under_other_names_prove_nothing(
    request_: QuantizationRequest, scenes: Path, tmp_path: Path
) -> None:
    shutil.copytree(scenes / "images", tmp_path / "copies")
    result = quantize(replace(request_, num_samples=1000, proof_images=tmp_path / "copies"))
    assert result.accuracy is None
    assert "accuracy was not measured" in result.verdict()
    with pytest.raises(NoImages, match="did not calibrate"):
        quantize(replace(request_, num_samples=1000, proof_images=tmp_path / "copies", max_drop=0.1))


@pytest.mark.slow
def test_ranges_are_kept_for_the_same_graph_and_images_alone(request_: QuantizationRequest, tmp_path: Path) -> None:
    request = replace(request_, cache_dir=tmp_path / "cache")

    def cached(**changes: Any) -> bool:
        calibration = quantize(replace(request, **changes)).calibration
        assert calibration is not None
        return bool(calibration["cached"])

    assert not cached()
    assert cached()
    assert cached(exclude=("/model.0/*",)), "what is left out changes no range"
    assert not cached(num_samples=9)
    assert not cached(method="percentile")


def test_dynamic_quantisation_says_that_tensorrt_refuses_it(request_: QuantizationRequest) -> None:
    result = quantize(replace(request_, mode="dynamic"))
    assert result.calibration is None
    assert result.accuracy is not None
    assert result.operators["DynamicQuantizeLinear"] > 0
    assert "DYNAMIC_QUANTIZATION" in result.verdict()
    assert "ONNX Runtime on a CPU only" in result.verdict()


def test_what_the_graph_fixes_cannot_be_asked_otherwise(request_: QuantizationRequest) -> None:
    with pytest.raises(InvalidInputSize):
        quantize(replace(request_, input_size=(640, 640)))
    with pytest.raises(FeedMismatch):
        quantize(replace(request_, batch_size=4))


def test_a_graph_of_free_axes_takes_the_size_and_batch_of_the_request(
    request_: QuantizationRequest, pills: Path, tmp_path: Path
) -> None:
    path = tmp_path / "free.onnx"
    onnx.save(onnx_from_torch(open_model(pills), input_size=SIZE, dynamic=True), path)
    result = quantize(replace(request_, source=path, input_size=(256, 320), batch_size=2, max_batches=3))
    assert result.calibration is not None
    assert result.calibration["used"] == 6
    with OrtRuntime(request_.result) as runtime:
        assert runtime.infer({"images": np.zeros((2, 3, 192, 192), np.float32)})["output0"].shape[0] == 2


def test_a_file_that_says_nothing_of_its_images_is_warned_about(request_: QuantizationRequest, tmp_path: Path) -> None:
    model = load_onnx(request_.source)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    result = quantize(replace(request_, source=tmp_path / "bare.onnx"))
    assert result.accuracy is not None
    assert result.accuracy.measure == "output_cosine"
    assert "does not say how its images are prepared" in result.warnings[0]


def _broken(request: QuantizationRequest, folder: Path) -> tuple[QuantizationRequest, str]:
    """The request on a model that answers as the pills model does and that plain INT8 breaks."""
    model, name = with_outlier(load_onnx(request.source))
    path = folder / "outlier.onnx"
    onnx.save(model, path)
    return replace(request, source=path, max_drop=0.02), name


def _same_answers(first: Path, second: Path, images: Sequence[np.ndarray[Any, Any]]) -> bool:
    with OrtRuntime(first) as one, OrtRuntime(second) as other:
        answers = [[runtime.infer({"images": image})["output0"] for image in images] for runtime in (one, other)]
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-2) for a, b in zip(*answers, strict=True))


def test_a_gate_that_is_not_passed_writes_the_report_and_no_model(
    request_: QuantizationRequest, tmp_path: Path
) -> None:
    broken, _ = _broken(request_, tmp_path)
    noise = [np.random.default_rng(0).random((1, 3, *SIZE), dtype=np.float32)]
    assert _same_answers(request_.source, broken.source, noise), "in floating point it is the same model"
    with pytest.raises(AccuracyDropped) as caught:
        quantize(broken)
    assert "detection_agreement" in caught.value.expected
    assert not broken.result.exists()
    assert _report(broken)["accuracy"]["drop"] > 0.02


@pytest.mark.slow
def test_repair_keeps_the_broken_layer_in_fp32_and_passes(request_: QuantizationRequest, tmp_path: Path) -> None:
    broken, name = _broken(request_, tmp_path)
    result = quantize(replace(broken, repair=True))
    assert result.repair is not None
    assert result.repair.fits
    assert name in result.repair.kept
    assert len(result.repair.kept) <= 4
    assert result.repair.evaluations >= 1
    assert result.accuracy is not None
    assert result.accuracy.drop <= 0.02
    assert name in result.nodes.excluded
    assert broken.result.exists()
