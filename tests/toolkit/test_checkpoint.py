"""Which `.pt` files open, and what those that do not say about themselves."""

from __future__ import annotations

import io
import pathlib
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms
from ultralytics.nn.modules import Detect
from ultralytics.utils import IterableSimpleNamespace

from app.toolkit import errors
from app.toolkit.checkpoint import check_activation, find_state_dict, model_from_checkpoint, open_checkpoint
from app.toolkit.images import DEFAULT_IMAGES
from app.toolkit.models.open_model import open_model
from tests.toolkit.archives import Call, pickled, write_archive
from tests.toolkit.conftest import NETWORKS, MakeModel


def test_a_trained_checkpoint_opens_and_uses_only_names_of_torch_and_ultralytics(pills: Path) -> None:
    checkpoint = open_checkpoint(pills)
    assert type(model_from_checkpoint(checkpoint)).__name__ == "DetectionModel"
    assert len([name for name in checkpoint.names if name.startswith(("torch.nn.", "ultralytics.nn."))]) == 15
    roots = {name.split(".")[0] for name in checkpoint.names}
    assert roots == {"torch", "ultralytics", "collections", "builtins"}


def test_a_restricted_load_gives_the_same_answers_as_an_ordinary_one(pills: Path) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    answers = []
    for trusted in (False, True):
        network = model_from_checkpoint(open_checkpoint(pills, trusted=trusted)).float().eval()
        with torch.inference_mode():
            answers.append(network(image)[0])
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_task_of_ultralytics_opens(name: str, make_model: MakeModel) -> None:
    assert open_model(make_model(name)).family == "ultralytics"


def test_the_averaged_weights_are_preferred(tmp_path: Path) -> None:
    path = tmp_path / "both.pt"
    torch.save({"model": nn.Linear(1, 1), "ema": nn.Linear(2, 2)}, path)
    network = model_from_checkpoint(open_checkpoint(path))
    assert isinstance(network, nn.Linear) and network.in_features == 2


def test_what_older_and_unstripped_checkpoints_hold_opens_too(tmp_path: Path) -> None:
    head = nn.Linear(2, 2)
    head.detect = Detect.forward  # what YOLOv8's first segmentation heads kept; pickled as a call of getattr
    head.transforms = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
    content = {
        "model": head,
        "best_fitness": np.float64(0.5),
        "train_metrics": {"a": np.float32(1.5)},
        "train_args": IterableSimpleNamespace(imgsz=640, save_dir=pathlib.PurePosixPath("runs")),
        "optimizer": torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9).state_dict(),
        "dtype": torch.float16,
    }
    path = tmp_path / "last.pt"
    content["train_args"].save_dir = Call(pathlib.PosixPath, "runs", "train")
    torch.save(content, path)
    opened = open_checkpoint(path).content
    assert opened["best_fitness"] == 0.5
    assert opened["train_metrics"]["a"] == np.float32(1.5)
    assert opened["train_args"].imgsz == 640
    assert opened["train_args"].save_dir == pathlib.PurePosixPath("runs/train")
    assert opened["model"].detect is Detect.forward
    assert opened["dtype"] is torch.float16


def test_a_state_dict_opens_and_says_that_it_has_no_network(classifier: Path) -> None:
    checkpoint = open_checkpoint(classifier)
    weights = find_state_dict(checkpoint.content)
    assert weights is not None and len(weights) == 244
    with pytest.raises(errors.StateDictWithoutModel, match="244 tensors"):
        model_from_checkpoint(checkpoint)


def test_weights_that_name_no_network_say_what_a_timm_checkpoint_has(classifier: Path, tmp_path: Path) -> None:
    content = torch.load(classifier)
    torch.save(content["state_dict"], tmp_path / "weights.pt")
    with pytest.raises(errors.StateDictWithoutModel, match="244 tensors") as caught:
        open_model(tmp_path / "weights.pt")
    assert "backbone, num_classes, state_dict" in caught.value.hint


def test_a_network_of_another_family_is_named(tmp_path: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(1, 1))}, tmp_path / "other.pt")
    with pytest.raises(errors.UnknownModelFamily, match=r"torch\.nn\.modules\.container\.Sequential"):
        open_model(tmp_path / "other.pt")


def test_a_dictionary_without_any_model_lists_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "log.pt")
    with pytest.raises(errors.NotAModel, match="'epoch', 'loss'"):
        model_from_checkpoint(open_checkpoint(tmp_path / "log.pt"))


def _bytes_of_legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _bytes_of_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def _bytes_of_torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; such files are not gone
        torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", errors.EmptyFile, "is empty"),
    "text": (b"epoch,loss\n1,0.5\n", errors.NotAModel, "text file that begins 'epoch,loss"),
    "korean text": ("최적화 ".encode() * 100, errors.NotAModel, "text file that begins '최적화"),
    "random bytes": (random.Random(3).randbytes(4096), errors.NotAModel, "bytes of no known kind"),
    "picture": (DEFAULT_IMAGES[0].read_bytes(), errors.NotAModel, "a JPEG picture"),
    "another zip": (_bytes_of_npz(), errors.NotAModel, "not one of torch's"),
    "old torch": (_bytes_of_legacy(), errors.LegacyCheckpoint, "bare pickle"),
    "torchscript": (_bytes_of_torchscript(), errors.TorchScriptFile, "TorchScript archive"),
    "cut zip": (b"PK\x03\x04" + bytes(100), errors.CorruptFile, "damaged or incomplete"),
    "no pickle inside": (None, errors.CorruptFile, "damaged or incomplete"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_each_bad_file_has_its_own_sentence(kind: str, tmp_path: Path) -> None:
    content, error, sentence = BAD_FILES[kind]
    path = tmp_path / "model.pt"
    if content is None:
        write_archive(path, b"\x80\x02this is no pickle")
    else:
        path.write_bytes(content)
    with pytest.raises(error, match=sentence) as caught:
        open_checkpoint(path)
    assert caught.value.code == error.code != errors.ToolkitError.code
    assert caught.value.expected and caught.value.received


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.FileMissing, match=r"there is no file gone\.pt"):
        open_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_checkpoint_cut_anywhere_is_corrupt(kept: float, pills: Path, tmp_path: Path) -> None:
    data = pills.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(errors.CorruptFile):
        open_checkpoint(path)


def test_an_entry_twice_in_the_archive_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "twice.pt", pickled({"a": 1}))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns of what this test is about
        archive.writestr("evil/data.pkl", pickled({"a": 2}))
    with pytest.raises(errors.CorruptFile, match="twice"):
        open_checkpoint(path)


def test_a_compressed_archive_is_refused_before_anything_is_inflated(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bomb.pt", b"\x80\x02" + bytes(8 << 20), deflate=True)
    assert path.stat().st_size < 100_000
    with pytest.raises(errors.CorruptFile, match="compressed"):
        open_checkpoint(path)


def test_a_pickle_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "large.pt", bytes(65 << 20))
    with pytest.raises(errors.CorruptFile, match="at most 64 MiB"):
        open_checkpoint(path)


@pytest.mark.parametrize("activation", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1, inplace=True)", "nn.ReLU6()"])
def test_plain_activations_pass(activation: str) -> None:
    check_activation(activation)


@pytest.mark.parametrize(
    "activation",
    [
        "__import__('os').system('id')",
        "nn.SiLU",
        "nn.SiLU()()",
        "nn.Sequential(__import__('os').system('id'))",
        "nn.init.torch.hub.load('a')",
        "nn.functional.F()",
        "os.nn.SiLU()",
        "(lambda: 1)()",
        "nn.SiLU(",
        "nn.DataParallel(x)",
        "",
        "(" * 5000,
    ],
)
def test_anything_but_a_plain_layer_is_refused_as_activation(activation: str) -> None:
    with pytest.raises(errors.UnsafeCheckpoint):
        check_activation(activation)
