"""Opening a D-FINE checkpoint: a folder as `save_pretrained` writes it, or an archive of one.

    config.json                 which network; model_type is d_fine
    model.safetensors           its weights
    preprocessor_config.json    its images' way into it; RT-DETR's defaults without it

Other files are left alone: a pickle may run code, an adapter's configuration would fetch a base model, and a network's
own Python would be run. For the same reason only words that describe the network are taken from `config.json`, not
those that name kernels, quantisers or places to fetch from. An archive is read where it lies: nothing is unpacked.
"""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A check in each decoder layer waits for the GPU, which a CUDA graph forbids; `check_input` keeps it true.
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config, PretrainedConfig
from transformers.utils import logging

from app.toolkit.errors import (
    CorruptFile,
    FileMissing,
    InvalidCheckpoint,
    InvalidPreprocessing,
    StateDictMismatch,
    UnknownModelFamily,
)
from app.toolkit.models.dfine import FAMILY, DFineModel
from app.toolkit.preprocessing import Preprocessing

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"
WANTED = frozenset({CONFIG, WEIGHTS, PROCESSOR})
BACKBONE = "hgnet_v2"

MAX_JSON_BYTES = 4 << 20
MAX_BYTES = 8 << 30  # of the weights, and of a whole tar; the largest D-FINE's are 250 MB

NAMED = 4  # tensors that a message names; the error carries all

# `PretrainedConfig` reads id2label for the number of classes; its other words are the library's own affair.
CLASS_WORDS = frozenset({"id2label", "label2id"})
INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar of one file's tensors is noise in a job's log


def open_dfine(path: Path, *, num_queries: int | None = None) -> DFineModel:
    """Open a checkpoint's folder or archive (.zip, .tar, .tar.gz, .tgz).

    Raises FileMissing, CorruptFile, UnknownModelFamily, InvalidCheckpoint, StateDictMismatch, InvalidPreprocessing, and
    InvalidQueries for another `num_queries` than 1 to as many as it was trained with.
    """
    files = _Files(path)
    config = _config(files.json(CONFIG), path.name)
    preprocessing, size = _preprocessing(files.json(PROCESSOR) if PROCESSOR in files else {})
    network = _network(config, files.weights(), path.name)
    fixed = config.anchor_image_size
    return DFineModel(network, preprocessing, tuple(fixed) if fixed else size, num_queries)


class _Files:
    """The three files of a checkpoint, by name, from a folder or from the archive's one folder that has a config."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = _found(path)
        if CONFIG not in self._found:
            raise FileMissing(
                f"{path.name} holds no {CONFIG}",
                expected=f"{CONFIG}, {WEIGHTS} and {PROCESSOR}, as save_pretrained writes them",
                received=", ".join(sorted(self._found)) or "none of them",
                hint="pack the files of one checkpoint, in one folder or in none",
            )

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._found[name])
        except (ValueError, RecursionError) as error:
            raise _corrupt(self.path, f"{name}: {error}") from error
        if not isinstance(content, dict):
            raise _corrupt(self.path, f"{name} is no JSON object")
        return content

    def weights(self) -> dict[str, torch.Tensor]:
        if WEIGHTS not in self._found:
            raise FileMissing(
                f"{self.path.name} holds no {WEIGHTS}",
                expected=f"the weights as {WEIGHTS}",
                received=", ".join(sorted(self._found)),
                hint="save it again with save_pretrained; pickled weights (.bin) are not opened, as they may run code",
            )
        try:
            return safetensors.torch.load(self._found[WEIGHTS])
        except SafetensorError as error:
            raise _corrupt(self.path, f"{WEIGHTS}: {error}") from error


def _found(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in WANTED if (path / name).is_file()}
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a D-FINE checkpoint", received=str(path))
    with _damage_told(path):
        return _zipped(path) if path.name.lower().endswith(".zip") else _tarred(path)


def _zipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        wanted = _wanted({member.filename: member.file_size for member in archive.infolist()})
        return {name: archive.read(member) for name, member in wanted.items()}


def _tarred(path: Path) -> dict[str, bytes]:
    members: dict[str, tarfile.TarInfo] = {}
    unpacked = 0
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg():
                members[member.name] = member
            unpacked += member.size
            if unpacked > MAX_BYTES:  # before the next is looked for, as all between is decompressed
                raise tarfile.TarError(f"more than {MAX_BYTES} bytes when unpacked")
        wanted = _wanted({name: member.size for name, member in members.items()})
        files = {name: archive.extractfile(members[member]) for name, member in wanted.items()}
        return {name: file.read() for name, file in files.items() if file is not None}


def _wanted(sizes: Mapping[str, int]) -> dict[str, str]:
    """The members by the wanted files' names, beside the uppermost config: training may have left others below."""
    configs = [PurePosixPath(member) for member in sizes if PurePosixPath(member).name == CONFIG]
    if not configs:
        return {}
    folder = min(configs, key=lambda path: len(path.parts)).parent
    found = {PurePosixPath(member).name: member for member in sizes if PurePosixPath(member).parent == folder}
    for name in WANTED & found.keys():
        most = MAX_BYTES if name == WEIGHTS else MAX_JSON_BYTES
        if sizes[found[name]] > most:
            raise tarfile.TarError(f"{name}: {sizes[found[name]]} bytes, at most {most} are read")
    return {name: found[name] for name in WANTED & found.keys()}


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise _corrupt(path, str(error)) from error
    except (RuntimeError, ValueError) as error:  # a password, an unknown compression; a name that no file can have
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, received: str) -> CorruptFile:
    return CorruptFile(
        f"{path.name} is damaged or incomplete",
        expected=f"{CONFIG}, {WEIGHTS} and {PROCESSOR}, as save_pretrained writes them",
        received=received,
        hint="pack it anew and upload it again",
    )


def _config(words: Mapping[str, Any], name: str) -> PretrainedConfig:
    backbone = words.get("backbone_config") or {}
    found = (words.get("model_type"), backbone.get("model_type", BACKBONE) if isinstance(backbone, Mapping) else None)
    if found != (FAMILY, BACKBONE):
        raise UnknownModelFamily(
            f"{name} is of another network than D-FINE",
            expected=f"model_type {FAMILY} with a backbone of {BACKBONE}",
            received=f"model_type {found[0]} with a backbone of {found[1]}",
            hint="Ultralytics' and timm's models are .pt files",
        )
    try:
        stages = HGNetV2Config(**{"out_indices": [2, 3, 4], **_described(HGNetV2Config, backbone)})
        config: PretrainedConfig = DFineConfig(**{**_described(DFineConfig, words), "backbone_config": stages})
    except Exception as error:  # each version of transformers checks with errors of its own
        raise InvalidCheckpoint(
            f"{CONFIG} does not describe a D-FINE network",
            expected="the words of transformers' DFineConfig",
            received=f"{type(error).__name__}: {error}".strip().splitlines()[0],
            hint="take the file that save_pretrained wrote",
        ) from error
    return config


def _described(kind: type[PretrainedConfig], words: Mapping[str, Any]) -> dict[str, Any]:
    """The words that are this kind of network's own."""
    own = kind().to_dict().keys() - PretrainedConfig().to_dict().keys() | CLASS_WORDS
    return {name: value for name, value in words.items() if name in own}


def _network(config: PretrainedConfig, weights: dict[str, torch.Tensor], name: str) -> nn.Module:
    """The network with exactly these weights, by the names of this or of an older transformers."""
    load: Any = DFineForObjectDetection.from_pretrained  # its types leave out the second answer
    try:
        network, told = load(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except Exception as error:  # the layers' own checks of what the configuration says
        raise InvalidCheckpoint(
            f"transformers cannot make the network that {CONFIG} describes",
            expected="a configuration whose sizes fit each other",
            received=f"{type(error).__name__}: {error}".strip().splitlines()[0],
            hint="take the file that save_pretrained wrote",
        ) from error
    reshaped = [str(one[0]) for one in told["mismatched_keys"]]
    groups = {"missing": told["missing_keys"], "unexpected": told["unexpected_keys"], "of another shape": reshaped}
    if any(groups.values()):
        raise StateDictMismatch(
            f"the weights of {name} do not fit its {CONFIG}",
            names=sorted(set().union(*groups.values())),
            expected=f"the {len(network.state_dict())} tensors that {CONFIG} asks for",
            received="; ".join(_listed(words, sorted(names)) for words, names in groups.items() if names),
            hint="pack the files of one checkpoint",
        )
    made: nn.Module = network
    return made


def _listed(words: str, names: Sequence[str]) -> str:
    return f"{len(names)} {words}: {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"


def _preprocessing(words: Mapping[str, Any]) -> tuple[Preprocessing, tuple[int, int]]:
    """`RTDetrImageProcessor`'s words and defaults (5.23), and its (H, W) in px."""
    size = words.get("size", {"height": 640, "width": 640})
    sides: list[Any] = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else []
    factor, resample = words.get("rescale_factor", 1 / 255), words.get("resample", 2)
    rescaled = words.get("do_rescale", True) and isinstance(factor, float) and abs(factor - 1 / 255) < 1e-6
    interpolation = INTERPOLATION.get(resample) if isinstance(resample, int) else None
    for name, holds, expected in (
        ("size", len(sides) == 2 and all(type(side) is int and side > 0 for side in sides), "height and width in px"),
        ("do_resize", words.get("do_resize", True), "true"),
        ("do_pad", not words.get("do_pad", False), "false"),
        ("rescale_factor", rescaled, "1/255, and do_rescale true"),
        ("resample", interpolation is not None, "2 (bilinear) or 3 (bicubic)"),
    ):
        if not holds:
            raise InvalidPreprocessing(
                f"{PROCESSOR} asks for what is not done here: {name}",
                expected=expected,
                received=repr(words.get(name))[:200],
                hint=f"correct {name}, if the network was trained so",
            )
    changes: dict[str, Any] = {"resize": "stretch_antialiased", "interpolation": interpolation}
    if words.get("do_normalize", False):
        changes |= {"mean": words.get("image_mean"), "std": words.get("image_std")}
    return Preprocessing.from_dict(changes), (sides[0], sides[1])
