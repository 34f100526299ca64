"""A D-FINE checkpoint opens from a folder or an archive, exports, and answers as transformers says that it does."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DFineForObjectDetection, RTDetrImageProcessor
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from app.toolkit import errors
from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.runners import open_runner
from app.toolkit.benchmark.source import Source, open_source
from app.toolkit.detections import COCO_NMS, NmsSettings
from app.toolkit.images import DEFAULT_IMAGES, read_image
from app.toolkit.models.dfine import DFineModel
from app.toolkit.models.exported import ExportedModel
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx
from app.toolkit.parity import FP16_LIMITS, FP32_LIMITS, judge, measure
from app.toolkit.pipeline import ExportResult, export_and_prove
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import Array
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.request import Sampling, VerifyRequest
from tests.toolkit.dfines import save_dfine, save_full_size

SIDE = 128
SIZE = (SIDE, SIDE)
EXPORT_SIZE = (160, 192)
"""Of no other test: transformers keeps the positions of a size, and they would hide what is traced."""

ANTIALIASED = Preprocessing("stretch_antialiased")
Changed = Callable[..., Path]


@pytest.fixture(scope="session")
def dfine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny D-FINE's folder: 5 classes, 30 queries, 128 x 128 px."""
    return save_dfine(tmp_path_factory.mktemp("dfine") / "tiny", side_px=SIDE)


@pytest.fixture(scope="session")
def proven(dfine: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    target = tmp_path_factory.mktemp("dfine-onnx") / "tiny.onnx"
    return export_and_prove(dfine, target, dynamic=True, input_size=EXPORT_SIZE, threads=1)


@pytest.fixture
def changed(dfine: Path, tmp_path: Path) -> Changed:
    """`changed("config.json", model_type="rt_detr")`: the folder with other words in one of its files."""

    def change(name: str, **words: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(dfine, folder, dirs_exist_ok=True)
        content = {**json.loads((folder / name).read_text()), **words}
        (folder / name).write_text(json.dumps(content))
        return folder

    return change


def opened(path: Path, num_queries: int | None = None) -> DFineModel:
    model = open_model(path, num_queries=num_queries)
    assert isinstance(model, DFineModel)
    return model


def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def answers(model: DFineModel) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        logits, boxes = model.reference_module()(images())
    return logits, boxes


def transformers_answers(folder: Path, **words: Any) -> tuple[torch.Tensor, torch.Tensor]:
    network: Any = DFineForObjectDetection.from_pretrained(folder, **words)  # in evaluation mode
    with torch.inference_mode():
        told = network(pixel_values=images())
    return told.logits, told.pred_boxes


# -- what it is --------------------------------------------------------------------------------------------------------
def test_the_folder_says_what_it_is(dfine: Path) -> None:
    model = opened(dfine)
    assert (model.family, model.task, model.head, model.backbone) == ("d_fine", "detect", "boxes", "hgnet_v2")
    assert (model.num_queries, model.stride, model.channels, model.default_input_size) == (30, 32, 3, SIZE)
    assert model.names == {0: "pill", 1: "capsule", 2: "blister", 3: "bottle", 4: "box"}
    assert model.preprocessing == ANTIALIASED


@pytest.mark.parametrize("num_queries", [None, 7])
def test_it_answers_as_transformers_own_loading(num_queries: int | None, dfine: Path) -> None:
    """Also with fewer queries, which is a word of its configuration."""
    logits, boxes = answers(opened(dfine, num_queries))
    assert logits.shape == (2, num_queries or 30, 5) and boxes.shape == (2, num_queries or 30, 4)
    assert (logits[0] - logits[1]).abs().max() > 0.1 and (boxes[0] - boxes[1]).abs().max() > 0.1
    words = {} if num_queries is None else {"num_queries": num_queries}
    for ours, theirs in zip((logits, boxes), transformers_answers(dfine, **words), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("ending", "inside"),
    [(".zip", ""), (".zip", "run/checkpoint-500/"), (".tar.gz", ""), (".tar.gz", "run/checkpoint-500/"), (".tgz", "")],
)
def test_an_archive_is_as_good_as_the_folder(ending: str, inside: str, dfine: Path, tmp_path: Path) -> None:
    path = tmp_path / f"packed{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in dfine.iterdir():
                packed.write(file, inside + file.name)
    else:
        with tarfile.open(path, "w:gz") as packed_tar:
            packed_tar.add(dfine, inside or ".")
    for packed_answer, answer in zip(answers(opened(path)), answers(opened(dfine)), strict=True):
        assert torch.equal(packed_answer, answer)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_weights_with_the_names_of_transformers_4_are_understood(dfine: Path, changed: Changed) -> None:
    folder = changed("config.json")
    weights = {
        name.replace("o_proj", "out_proj")
        .replace("mlp.layers.0", "fc1")
        .replace("mlp.layers.1", "fc2")
        .replace("encoder.aifi.", "encoder.encoder."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(".fc1." in name for name in weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for old, new in zip(answers(opened(folder)), answers(opened(dfine)), strict=True):
        assert torch.equal(old, new)


def test_without_a_processor_its_defaults_hold(changed: Changed) -> None:
    folder = changed("config.json")
    (folder / "preprocessor_config.json").unlink()
    model = opened(folder)
    assert model.default_input_size == (640, 640) and model.preprocessing == ANTIALIASED


def test_the_processors_words_are_taken(changed: Changed) -> None:
    words = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    model = opened(changed("preprocessor_config.json", size={"height": 96, "width": 160}, **words))
    assert model.preprocessing == Preprocessing("stretch_antialiased", "RGB", (0.5,) * 3, (0.25,) * 3, 1.0, "bicubic")
    assert model.default_input_size == (96, 160)


# -- fewer queries -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 31])
def test_only_as_many_queries_as_were_trained(count: int, dfine: Path) -> None:
    with pytest.raises(errors.InvalidQueries, match="expected: num_queries from 1 to 30"):
        opened(dfine, num_queries=count)


def test_other_families_have_no_queries(pills: Path) -> None:
    with pytest.raises(errors.InvalidQueries, match="only D-FINE answers with queries"):
        open_model(pills, num_queries=100)


# -- images in, boxes out ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", DEFAULT_IMAGES, ids=lambda path: path.name)
def test_images_are_prepared_as_by_the_processor(path: Path, dfine: Path) -> None:
    """Equal to its Pillow form; its torchvision form rounds some pixels to the other neighbour."""
    image, wanted = read_image(path), {"height": 320, "width": 416}
    ours, _ = opened(dfine).preprocess(image, (320, 416))
    pillow, torchvision = (
        kind(size=wanted)(images=image, return_tensors="np")["pixel_values"]
        for kind in (RTDetrImageProcessorPil, RTDetrImageProcessor)
    )
    np.testing.assert_allclose(ours, pillow, atol=1e-6)
    np.testing.assert_allclose(ours, torchvision, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("settings", [NmsSettings(conf=0.6), NmsSettings(conf=0.6, max_det=4), COCO_NMS])
def test_boxes_are_read_as_by_the_processor(settings: NmsSettings, dfine: Path) -> None:
    model = opened(dfine)
    frames = [model.preprocess(read_image(path), SIZE)[1] for path in DEFAULT_IMAGES]
    noise = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(2, 30, 5, generator=noise), torch.rand(2, 30, 4, generator=noise) * 0.3 + 0.35
    theirs = RTDetrImageProcessor().post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes),
        threshold=settings.conf,
        target_sizes=[frame.image_size_px for frame in frames],
    )
    found = model.postprocess({"logits": logits.numpy(), "pred_boxes": boxes.numpy()}, frames, settings)
    for ours, their in zip(found, theirs, strict=True):
        kept = min(len(their["scores"]), settings.max_det)
        assert len(ours) == kept > 0
        np.testing.assert_allclose(ours.scores, their["scores"][:kept], rtol=1e-5)
        np.testing.assert_allclose(ours.boxes_xyxy, their["boxes"][:kept], atol=1e-2)
        np.testing.assert_array_equal(ours.classes, their["labels"][:kept])


def test_an_impossible_class_scores_zero_without_a_warning(dfine: Path) -> None:
    _, frame = opened(dfine).preprocess(np.zeros((64, 64, 3), np.uint8), SIZE)
    outputs = {"logits": np.full((1, 30, 5), -500.0), "pred_boxes": np.zeros((1, 30, 4))}
    assert len(opened(dfine).postprocess(outputs, [frame], COCO_NMS)[0]) == 0


# -- sizes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(128, 100), (0, 128), (32, 32)])
def test_sizes_that_the_network_cannot_take_are_refused(size: tuple[int, int], dfine: Path) -> None:
    with pytest.raises(errors.InvalidInputSize, match="multiples of 32 px with 30 cells"):
        opened(dfine).check_input(size, 3)


def test_anchors_of_one_size_fix_the_input(changed: Changed) -> None:
    model = opened(changed("config.json", anchor_image_size=[96, 128]))
    model.check_input((96, 128), 3)
    with pytest.raises(errors.InvalidInputSize, match="expected: the size of its anchors"):
        model.check_input(SIZE, 3)


# -- export ------------------------------------------------------------------------------------------------------------
def test_the_export_is_proven(proven: ExportResult) -> None:
    assert proven.parity["passed"] and proven.opset == 17
    assert {name for one in proven.parity["inputs"] for name in one["outputs"]} == {"logits", "pred_boxes"}
    assert proven.inputs[0].shape == ("batch", 3, *EXPORT_SIZE)


def test_the_oldest_opset_that_samples_grids_keeps_the_paddings(dfine: Path, tmp_path: Path) -> None:
    """onnxslim's shape inference folds a padding's sides to others there."""
    assert export_and_prove(dfine, tmp_path / "a.onnx", opset=16, images=DEFAULT_IMAGES[:1], threads=1).parity["passed"]


def test_the_file_reads_its_images_and_answers_as_the_checkpoint(proven: ExportResult, dfine: Path) -> None:
    graph, model = load_onnx(proven.path), opened(dfine)
    told = ExportedModel.of_onnx(graph)
    assert (told.family, told.task, told.head, told.names) == ("d_fine", "detect", "boxes", model.names)
    assert (told.preprocessing, told.input_size, told.batch) == (model.preprocessing, EXPORT_SIZE, None)
    assert told.parts == model.parts
    image = read_image(DEFAULT_IMAGES[0])
    tensor, frame = told.preprocess(image, EXPORT_SIZE)
    np.testing.assert_array_equal(tensor, model.preprocess(image, EXPORT_SIZE)[0])
    with OrtRuntime(proven.path) as runtime:
        outputs = runtime.infer({"pixel_values": tensor})
    first, second = (one.postprocess(outputs, [frame], COCO_NMS)[0] for one in (told, model))
    assert len(first) == 30
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)


@pytest.mark.slow
def test_a_benchmarks_ways_answer_alike(dfine: Path, tmp_path: Path) -> None:
    request = BenchmarkRequest(dfine, tmp_path, num_queries=20, threads=1)
    source = open_source(request)
    wanted, given = (answers_of(way, source, request) for way in ("torch_fp32", "onnxruntime"))
    assert wanted["logits"].shape == (2, 20, 5)
    assert judge([measure("noise", "image", wanted, given, source.model.parts)], source.model.parts, FP32_LIMITS).passed


def answers_of(way: Way, source: Source, request: BenchmarkRequest) -> dict[str, Array]:
    with open_runner(way, source, request, 2) as runner:
        return runner.infer({"pixel_values": images().numpy()})


def test_fp16_answers_alike(dfine: Path, tmp_path: Path) -> None:
    result = export_and_prove(
        dfine, tmp_path / "half.onnx", precision="fp16", num_queries=20, images=DEFAULT_IMAGES[:1], threads=1
    )
    assert result.parity["passed"] and result.parity["limits"]["values"] == FP16_LIMITS.values


def test_a_verification_takes_the_archive_and_the_file(proven: ExportResult, dfine: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", dfine))
    told = verify(VerifyRequest(archive, proven.path, DEFAULT_IMAGES[0].parent, tmp_path, sampling=Sampling("smoke")))
    assert (told.kernel.verdict, told.pipeline.verdict) == ("passed", "passed")
    assert {"kernel_logits_paired", "kernel_pred_boxes_paired"} <= {gate.name for gate in told.kernel.gates}


@pytest.mark.slow
def test_the_full_size_network_exports_and_answers_alike(tmp_path: Path) -> None:
    """D-FINE L with random weights: row by row its logits differ by 2, as 3 of 300 queries change places."""
    folder = save_full_size(tmp_path / "full")
    result = export_and_prove(folder, tmp_path / "full.onnx", dynamic=True)
    assert result.parity["passed"] and result.inputs[0].shape == ("batch", 3, 640, 640)


# -- what is wrong -----------------------------------------------------------------------------------------------------
def test_pickled_weights_are_not_opened(changed: Changed) -> None:
    folder = changed("config.json")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(errors.FileMissing, match=r"pickled weights \(\.bin\) are not opened"):
        opened(folder)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.FileMissing, match=r"holds no config\.json"):
        opened(tmp_path)


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_a_cut_archive_is_refused(ending: str, dfine: Path, tmp_path: Path) -> None:
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "zip" if ending == ".zip" else "gztar", dfine))
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(errors.CorruptFile, match="damaged or incomplete"):
        opened(cut)


def test_a_file_larger_than_is_read_is_refused(dfine: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("config.json", b" " * (5 << 20))
    with pytest.raises(errors.CorruptFile, match=r"config\.json: 5242880 bytes, at most 4194304 are read"):
        opened(tmp_path / "bomb.zip")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff"])
def test_a_broken_configuration_is_refused(content: bytes, changed: Changed) -> None:
    folder = changed("config.json")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(errors.CorruptFile, match=r"config\.json"):
        opened(folder)


def test_broken_weights_are_refused(changed: Changed) -> None:
    folder = changed("config.json")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(errors.CorruptFile, match=r"model\.safetensors"):
        opened(folder)


@pytest.mark.parametrize(
    "words",
    [
        {"model_type": "rt_detr"},
        {"model_type": None},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "use_pretrained_backbone": True}},
        {"backbone_config": "resnet50"},
    ],
    ids=str,
)
def test_other_networks_are_refused(words: dict[str, Any], changed: Changed) -> None:
    with pytest.raises(errors.UnknownModelFamily, match="model_type d_fine with a backbone of hgnet_v2"):
        opened(changed("config.json", **words))


@pytest.mark.parametrize("words", [{"d_model": "large"}, {"decoder_n_points": [4, 4]}], ids=str)
def test_a_configuration_that_cannot_be_is_refused(words: dict[str, Any], changed: Changed) -> None:
    with pytest.raises((errors.InvalidCheckpoint, errors.StateDictMismatch)):
        opened(changed("config.json", **words))


@pytest.mark.parametrize("words", [{"encoder_ffn_dim": 48}, {"decoder_layers": 3}], ids=str)
def test_weights_of_another_network_are_refused(words: dict[str, Any], changed: Changed) -> None:
    with pytest.raises(errors.StateDictMismatch, match=r"do not fit its config\.json") as caught:
        opened(changed("config.json", **words))
    assert caught.value.names


def test_words_that_would_fetch_or_run_something_are_not_followed(dfine: Path, changed: Changed) -> None:
    folder = changed(
        "config.json",
        auto_map={"AutoModel": "modeling.Evil"},
        _attn_implementation="kernels-community/evil",
        attn_implementation="kernels-community/evil",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        backbone="someone/evil",
        use_pretrained_backbone=True,
        fusion_config={"patch_embeddings": True},
        return_dict=False,
    )
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/evil", "peft_type": "LORA"}')
    (folder / "modeling.py").write_text("raise SystemExit")
    for ours, theirs in zip(answers(opened(folder)), answers(opened(dfine)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"size": {"shortest_edge": 640}}, "size"),
        ({"size": 640}, "size"),
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"do_rescale": False}, "rescale_factor"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 0}, "resample"),
    ],
    ids=str,
)
def test_a_processor_that_does_something_else_is_refused(words: dict[str, Any], name: str, changed: Changed) -> None:
    with pytest.raises(errors.InvalidPreprocessing, match=f"asks for what is not done here: {name}"):
        opened(changed("preprocessor_config.json", **words))
