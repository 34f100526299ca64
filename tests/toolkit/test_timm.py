"""A timm checkpoint opens, exports and answers as it was trained; a wrong one says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch import nn
from ultralytics import YOLO

from app.toolkit import errors
from app.toolkit.detections import NmsSettings
from app.toolkit.images import DEFAULT_IMAGES, list_images, read_image
from app.toolkit.models.exported import ExportedModel
from app.toolkit.models.open_model import open_model
from app.toolkit.models.timm import TimmModel
from app.toolkit.onnx_file import load_onnx, opset_of
from app.toolkit.pipeline import ExportResult, export_and_prove
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.quantization.pipeline import quantize
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import RaceSettings
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes

Changed = Callable[..., Path]
SIZE = (96, 96)
TIMMS_OWN = Preprocessing("center_crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic")


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """96 pills that no training saw, each in a folder of its class's name."""
    return list_images(make_scenes(tmp_path_factory.mktemp("crops"), images=0, seed=4242) / "crops")


@pytest.fixture(scope="module")
def fp32(classifier: Path, crops: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    target = tmp_path_factory.mktemp("fp32") / "classifier.onnx"
    return export_and_prove(classifier, target, dynamic=True, images=crops[::12])


@pytest.fixture(scope="module")
def fp16(classifier: Path, crops: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    target = tmp_path_factory.mktemp("fp16") / "classifier.onnx"
    return export_and_prove(classifier, target, precision="fp16", dynamic=True, images=crops[::12])


@pytest.fixture
def changed(classifier: Path, tmp_path: Path) -> Changed:
    """`changed(num_classes=5, mean=None)`: the pills checkpoint with other words, those of None left out."""

    def change(**words: Any) -> Path:
        content = {**torch.load(classifier), **words}
        torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return change


def opened(path: Path) -> TimmModel:
    model = open_model(path)
    assert isinstance(model, TimmModel)
    return model


# -- what it is --------------------------------------------------------------------------------------------------------
def test_the_checkpoint_says_what_it_is(classifier: Path) -> None:
    model = opened(classifier)
    assert (model.family, model.task, model.head, model.backbone) == (
        "timm",
        "classify",
        "logits",
        "mobilenetv3_small_050",
    )
    assert model.default_input_size == SIZE and model.channels == 3
    assert len(model.names) == 12 and model.names[0] == "641100010"
    assert model.preprocessing == TIMMS_OWN


def test_what_the_checkpoint_leaves_out_is_the_backbones_but_nothing_is_cut_off(changed: Changed) -> None:
    model = opened(changed(class_names=None, input_size=None, mean=None, std=None))
    assert model.names == {index: f"class{index}" for index in range(12)}
    assert model.default_input_size == (224, 224)
    assert model.preprocessing == TIMMS_OWN


def test_what_the_checkpoint_says_of_its_images_is_taken(changed: Changed) -> None:
    model = opened(changed(mean=[0.5] * 3, std=[0.25] * 3, crop_pct=0.875, interpolation="bilinear"))
    assert model.preprocessing == Preprocessing("center_crop", "RGB", (0.5,) * 3, (0.25,) * 3, 0.875, "bilinear")


@pytest.mark.parametrize("size", [96, [96], [96, 96], [3, 96, 96]])
def test_an_input_size_may_be_written_in_each_of_timms_ways(size: Any, changed: Changed) -> None:
    assert opened(changed(input_size=size)).default_input_size == SIZE


def test_a_checkpoint_of_timms_own_trainer_opens(changed: Changed, classifier: Path) -> None:
    model = opened(changed(backbone=None, num_classes=None, class_names=None, arch="mobilenetv3_small_050", epoch=3))
    assert model.backbone == "mobilenetv3_small_050" and len(model.names) == 12


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrappers_prefix_is_taken_off(prefix: str, changed: Changed, classifier: Path) -> None:
    weights = torch.load(classifier)["state_dict"]
    wrapped = opened(changed(state_dict=None, model={prefix + name: tensor for name, tensor in weights.items()}))
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(wrapped.reference_module()(image), opened(classifier).reference_module()(image))


def test_averaged_weights_come_first(changed: Changed, classifier: Path) -> None:
    weights = torch.load(classifier)["state_dict"]
    averaged = {name: tensor * 0 for name, tensor in weights.items()}
    network = opened(changed(state_dict_ema=averaged)).reference_module()
    assert not any(parameter.any() for parameter in network.parameters())


def test_torchvisions_spelling_of_efficientnetv2_is_understood(tmp_path: Path) -> None:
    network = timm.create_model("efficientnetv2_s", num_classes=4)
    content = {"backbone": "efficientnet_v2_s", "num_classes": 4, "state_dict": network.state_dict()}
    torch.save(content, tmp_path / "v2.pt")
    assert opened(tmp_path / "v2.pt").backbone == "efficientnetv2_s"


def test_a_vision_transformer_takes_its_own_size_alone(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=4, img_size=(96, 128))
    content = {"backbone": "test_vit", "num_classes": 4, "input_size": [96, 128], "state_dict": network.state_dict()}
    torch.save(content, tmp_path / "vit.pt")
    model = opened(tmp_path / "vit.pt")
    model.check_input((96, 128), 3)
    with pytest.raises(errors.InvalidInputSize, match="test_vit takes one input size") as caught:
        model.check_input((96, 96), 3)
    assert caught.value.expected == "[96, 128]"
    result = export_and_prove(tmp_path / "vit.pt", tmp_path / "vit.onnx", images=DEFAULT_IMAGES[:1])
    assert result.parity["passed"] and result.inputs[0].shape == (1, 3, 96, 128)


# -- what is wrong -----------------------------------------------------------------------------------------------------
def test_too_small_an_input_and_other_channels_are_refused(classifier: Path) -> None:
    model = opened(classifier)
    model.check_input((32, 40), 3)
    with pytest.raises(errors.InvalidInputSize, match="at least 32 px"):
        model.check_input((31, 96), 3)
    with pytest.raises(errors.ChannelsMismatch, match="takes 3 channels"):
        model.check_input(SIZE, 1)


def test_a_classifier_gives_no_boxes(classifier: Path) -> None:
    with pytest.raises(errors.UnsupportedTask, match="no boxes"):
        opened(classifier).postprocess({}, [], NmsSettings())


@pytest.mark.parametrize(
    ("backbone", "hint"),
    [
        ("mobilenetv3_smal_050", "did you mean mobilenetv3_small_050"),
        ("mobilenetv3_small_050.imaginary", "did you mean mobilenetv3_small_050"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm.list_models()"),
        ("", "timm.list_models()"),
    ],
)
def test_an_unknown_backbone_names_the_nearest(backbone: str, hint: str, changed: Changed) -> None:
    with pytest.raises(errors.UnknownBackbone, match="timm has no network called") as caught:
        open_model(changed(backbone=backbone))
    assert hint in caught.value.hint


def test_another_number_of_classes_than_the_weights_have_is_told(changed: Changed) -> None:
    with pytest.raises(errors.StateDictMismatch, match="of 12 classes, not of 5") as caught:
        open_model(changed(num_classes=5, class_names=None))
    assert caught.value.names == ("classifier.weight",)
    assert "set num_classes to 12" in caught.value.hint


def test_weights_that_do_not_fit_are_counted_and_named(changed: Changed, classifier: Path) -> None:
    weights = torch.load(classifier)["state_dict"]
    del weights["conv_stem.weight"]
    weights["extra.weight"] = torch.zeros(1)
    weights["conv_head.bias"] = torch.zeros(7)
    with pytest.raises(errors.StateDictMismatch, match="do not fit mobilenetv3_small_050") as caught:
        open_model(changed(state_dict=weights))
    assert caught.value.received == (
        "1 missing: conv_stem.weight; 1 unexpected: extra.weight; 1 of another shape: conv_head.bias [7] for [1024]"
    )
    assert caught.value.names == ("conv_stem.weight", "extra.weight", "conv_head.bias")


def test_weights_of_another_network_say_so_and_name_a_few(changed: Changed) -> None:
    foreign = timm.create_model("test_resnet", num_classes=12).state_dict()
    renamed = {f"features.{name}": tensor for name, tensor in foreign.items()}
    with pytest.raises(errors.StateDictMismatch, match=r"244 missing: conv_stem\.weight, .*, \.\.\.") as caught:
        open_model(changed(state_dict=renamed))
    assert "another network than mobilenetv3_small_050" in caught.value.hint
    assert len(caught.value.names) == 244 + len(renamed)


@pytest.mark.parametrize(
    ("words", "error", "expected"),
    [
        ({"num_classes": "12"}, errors.InvalidCheckpoint, "a whole number"),
        ({"num_classes": 0}, errors.InvalidCheckpoint, "a whole number"),
        ({"num_classes": True}, errors.InvalidCheckpoint, "a whole number"),
        ({"class_names": ["a", "b"]}, errors.InvalidCheckpoint, "a list of 12 names"),
        ({"class_names": "pills"}, errors.InvalidCheckpoint, "a list of 12 names"),
        ({"input_size": "96"}, errors.InvalidCheckpoint, "[H, W] or [C, H, W]"),
        ({"input_size": [3, 96, 96, 1]}, errors.InvalidCheckpoint, "[H, W] or [C, H, W]"),
        ({"input_size": [96.5, 96]}, errors.InvalidCheckpoint, "[H, W] or [C, H, W]"),
        ({"input_size": [0, 96]}, errors.InvalidCheckpoint, "[H, W] or [C, H, W]"),
        ({"mean": "imagenet"}, errors.InvalidPreprocessing, "a list of numbers"),
        ({"std": [1, 1, 0]}, errors.InvalidPreprocessing, "numbers above 0"),
        ({"crop_pct": 90}, errors.InvalidPreprocessing, "above 0, up to 1"),
        ({"interpolation": "lanczos"}, errors.InvalidPreprocessing, "bilinear, bicubic"),
    ],
)
def test_a_checkpoints_wrong_words_are_named(
    words: dict[str, Any], error: type[errors.RequestError], expected: str, changed: Changed
) -> None:
    with pytest.raises(error, match=next(iter(words))) as caught:
        open_model(changed(**words))
    assert expected in caught.value.expected


def test_a_size_that_the_network_cannot_have_is_the_checkpoints_fault(tmp_path: Path) -> None:
    content = {
        "backbone": "xcit_nano_12_p16_224",
        "input_size": [100, 97],
        "model": {"head.weight": torch.zeros(4, 128)},
    }
    torch.save(content, tmp_path / "xcit.pt")
    with pytest.raises(errors.InvalidCheckpoint, match="timm cannot make xcit_nano") as caught:
        open_model(tmp_path / "xcit.pt")
    assert "`patch_size` should divide image dimensions" in caught.value.received


# -- its exports -------------------------------------------------------------------------------------------------------
def test_the_export_is_one_file_of_opset_17_whose_batch_alone_is_free(fp32: ExportResult) -> None:
    graph = load_onnx(fp32.path)
    assert opset_of(graph) == 17
    assert [(spec.name, spec.shape) for spec in fp32.inputs] == [("input", ("batch", 3, 96, 96))]
    assert [(spec.name, spec.shape) for spec in fp32.outputs] == [("logits", ("batch", 12))]
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in graph.graph.initializer)
    assert sorted(path.name for path in fp32.path.parent.iterdir()) == ["classifier.onnx", "classifier_parity.json"]


def test_it_is_proven_on_another_batch_and_on_the_pills(fp32: ExportResult, fp16: ExportResult) -> None:
    names = [one["name"] for one in fp32.parity["inputs"]]
    assert names[:2] == ["random", "random, another batch"] and len(names) == 10
    assert fp32.parity["passed"] and fp16.parity["passed"]
    assert fp32.parity["outputs"]["logits"]["mse"] < 1e-10
    assert fp16.parity["outputs"]["logits"]["mse"] < 1e-3
    assert 0.49 < fp16.path.stat().st_size / fp32.path.stat().st_size < 0.6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exports_know_98_of_100_pills(
    precision: str, fp32: ExportResult, fp16: ExportResult, crops: list[Path]
) -> None:
    path = fp32.path if precision == "fp32" else fp16.path
    model = ExportedModel.of_onnx(load_onnx(path))
    with OrtRuntime(path) as runtime:
        answers = [runtime.infer({"input": model.preprocess(read_image(crop), SIZE)[0]}) for crop in crops]
    found = [model.names[int(model.probabilities(answer).argmax())] for answer in answers]
    right = sum(name == crop.parent.name for name, crop in zip(found, crops, strict=True))
    assert len(crops) == 96 and right >= 0.98 * len(crops)


def test_the_file_says_all_that_the_checkpoint_said(classifier: Path, fp32: ExportResult, fp16: ExportResult) -> None:
    adapter = opened(classifier)
    for path in (fp32.path, fp16.path):
        model = ExportedModel.of_onnx(load_onnx(path))
        for word in ("family", "task", "head", "names", "channels", "preprocessing", "parts"):
            assert getattr(model, word) == getattr(adapter, word), word
        assert model.described and model.batch is None
        assert model.input_size == model.fixed_size == SIZE


def test_probabilities_are_the_softmax_of_the_logits(classifier: Path, crops: list[Path]) -> None:
    model = opened(classifier)
    tensor = np.concatenate([model.preprocess(read_image(crop), SIZE)[0] for crop in crops[::24]])
    module = model.reference_module()
    with TorchRuntime(module, model.input_specs(SIZE, 4), model.output_specs()) as runtime:
        found = model.probabilities(runtime.infer({"input": tensor}))
    with torch.inference_mode():
        wanted = module(torch.from_numpy(tensor)).softmax(dim=1).numpy()
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-6


def test_logits_that_are_no_numbers_give_probabilities_that_are_none(classifier: Path) -> None:
    logits = np.array([[0, np.inf, 1], [np.nan, 0, 1], [1000, -1000, 0]], np.float32)
    found = opened(classifier).probabilities({"logits": logits})
    assert np.isnan(found[:2]).any(axis=1).all()
    assert found[2].tolist() == [1, 0, 0]


def test_a_detector_has_no_probabilities(pills: Path) -> None:
    with pytest.raises(errors.UnsupportedTask, match="no classes"):
        open_model(pills).probabilities({"output0": np.zeros((1, 16, 10), np.float32)})


def test_its_int8_form_is_calibrated_with_its_own_images(fp32: ExportResult, crops: list[Path], tmp_path: Path) -> None:
    request = QuantizationRequest(
        fp32.path,
        tmp_path / "int8.onnx",
        images=crops[0].parents[1],
        num_samples=24,
        threads=2,
        race=RaceSettings(rounds=1, calls=1),
    )
    result = quantize(request)
    assert result.accuracy is not None and result.accuracy.measure == "top1_agreement"
    kept = ExportedModel.of_onnx(load_onnx(result.path))
    assert (kept.family, kept.head, kept.preprocessing.resize) == ("timm", "logits", "center_crop")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "mse"), [("fp32", 1e-6), ("fp16", 1e-4)])
def test_efficientnetv2_s_of_s4_at_384_px(precision: Any, mse: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("efficientnetv2_s", num_classes=5000)
    images = [TIMMS_OWN.apply(read_image(path), (384, 384))[0] for path in DEFAULT_IMAGES]
    noise = np.random.default_rng(1).random((2, 3, 384, 384), dtype=np.float32)
    _normalised_by(network, torch.from_numpy(np.concatenate([*images, noise])))
    content = {"backbone": "efficientnet_v2_s", "num_classes": 5000, "input_size": [384, 384]}
    torch.save({**content, "state_dict": network.state_dict()}, tmp_path / "best.pt")
    result = export_and_prove(tmp_path / "best.pt", tmp_path / "best.onnx", precision=precision, dynamic=True)
    assert opset_of(load_onnx(result.path)) == 17
    assert result.inputs[0].shape == ("batch", 3, 384, 384)
    assert all(one["outputs"]["logits"]["mse"] <= mse for one in result.parity["inputs"])


def _normalised_by(network: nn.Module, images: torch.Tensor) -> None:
    """Give untrained batch normalisations the statistics of images.

    Without, this network's logits reach 2e4 on a photograph, and its float32 answers on the CPU differ from its float64
    ones by 8e3, however they are computed: there is nothing to compare with.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(images)


# -- other classifiers -------------------------------------------------------------------------------------------------
def test_ultralytics_classifier_is_fed_a_centre_crop_from_its_file_too(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model("yolo11n-cls")
    adapter = open_model(source)
    result = export_and_prove(source, tmp_path / "cls.onnx", input_size=(64, 64), images=DEFAULT_IMAGES[:1])
    model = ExportedModel.of_onnx(load_onnx(result.path))
    assert adapter.head == model.head == "probabilities"
    assert adapter.preprocessing == model.preprocessing == Preprocessing("center_crop")
    assert adapter.parts == model.parts
    (theirs,) = YOLO(str(result.path), task="classify").predict(
        DEFAULT_IMAGES[0], imgsz=64, verbose=False, device="cpu"
    )
    with OrtRuntime(result.path) as runtime:
        tensor, _ = model.preprocess(read_image(DEFAULT_IMAGES[0]), (64, 64))
        ours = model.probabilities(runtime.infer({"images": tensor}))
    assert np.abs(ours[0] - theirs.probs.data.numpy()).max() < 1e-5


@pytest.mark.parametrize(("last", "head"), [("Softmax", "probabilities"), ("Relu", "logits")])
def test_a_lone_row_of_classes_without_metadata_is_read_by_its_last_node(last: str, head: str) -> None:
    names = (("GlobalAveragePool", "x", "p"), ("Flatten", "p", "f"), (last, "f", "y"))
    graph = helper.make_graph(
        [helper.make_node(operator, [read], [made]) for operator, read, made in names],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = ExportedModel.of_onnx(helper.make_model(graph))
    assert (model.head, model.described, model.family, model.task) == (head, False, "unknown", "unknown")
    assert model.names == {0: "class0", 1: "class1", 2: "class2"}
    assert model.preprocessing == Preprocessing()
    assert [part.output for part in model.parts] == ["y"]


def test_other_answers_without_metadata_stay_tensors() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 32, "w"])],
    )
    model = ExportedModel.of_onnx(helper.make_model(graph))
    assert (model.head, model.names, model.fixed_size, model.batch) == ("raw", {}, None, 1)
    assert model.input_size == (32, 640)
    assert [(part.name, part.unit) for part in model.parts] == [("y", "value")]


@pytest.mark.parametrize("text", ["letterbox", "[1]", "", '{"resize": '])
def test_a_broken_description_in_a_file_is_refused(text: str, fp32: ExportResult) -> None:
    graph: onnx.ModelProto = load_onnx(fp32.path)
    next(entry for entry in graph.metadata_props if entry.key == "preprocessing").value = text
    with pytest.raises(errors.InvalidPreprocessing, match="no description"):
        ExportedModel.of_onnx(graph)
