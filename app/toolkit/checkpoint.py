"""Opening a `.pt`: a file is a program until it was shown to be otherwise.

Four things happen before any model exists: the archive is checked (a whole zip, uncompressed, each entry once), every
pickle in it is scanned (`pickle_scan`, `allow_list`), torch reads it with `weights_only=True` and only the names that
the scan found and knows, and every `yaml["activation"]` in it must be a plain `nn.X(...)`, because Ultralytics
evaluates that text when a model is rebuilt. Nothing here calls Ultralytics' own loader, which may install packages and
fetch weights.
"""

from __future__ import annotations

import ast
import pickle
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.serialization  # torch.load imports it late, which costs the first load of a process 30 ms
from torch import nn

from app.toolkit.allow_list import CheckpointPolicy
from app.toolkit.errors import (
    CorruptFile,
    EmptyFile,
    FileMissing,
    LegacyCheckpoint,
    NotAModel,
    StateDictWithoutModel,
    TorchScriptFile,
    UnsafeCheckpoint,
)
from app.toolkit.pickle_scan import MalformedPickle, scan_pickle

# YOLO11x, the largest model in reach, has a data.pkl of 0.4 MiB; the scan's memory is some 30 times the pickle's.
MAX_PICKLE_MIB = 64

SAVE_AGAIN = "load it where it was made and save it again with torch.save"
TRUST_HINT = (
    "if you know who made the file, allow it by the setting that trusts checkpoints; "
    "otherwise save the model again with an unmodified Ultralytics"
)
SIGNATURES = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"ftrt", "a TensorRT engine"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
)

_torch_globals_lock = threading.Lock()  # safe_globals() swaps a set that belongs to the whole process


@dataclass(frozen=True)
class Checkpoint:
    """What a `.pt` holds. `content` is what torch.load gave; `names` are the classes and functions that it used."""

    path: Path
    content: Any
    names: tuple[str, ...]


def open_checkpoint(path: Path | str, *, trusted: bool = False) -> Checkpoint:
    """Read a `.pt` onto the CPU.

    `trusted` loads whatever the file asks for, as plain `torch.load` does: the file may then run any code.

    Raises FileMissing, EmptyFile, CorruptFile, NotAModel, LegacyCheckpoint, TorchScriptFile or UnsafeCheckpoint.
    """
    path = Path(path)
    _check_signature(path, trusted)
    if trusted:
        return Checkpoint(path, _load(path, weights_only=False), ())
    _check_archive(path)
    policy = CheckpointPolicy()
    names = _scan(path, policy)
    with _torch_globals_lock, torch.serialization.safe_globals(policy.torch_globals(names)):
        content = _load(path, weights_only=True)
    for activation in _activations(content):
        check_activation(activation)
    return Checkpoint(path, content, tuple(sorted(names)))


def model_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The network in a checkpoint: the averaged weights where there are any, as Ultralytics picks.

    Raises StateDictWithoutModel for weights without a network, NotAModel for anything else.
    """
    content = checkpoint.content
    candidates = [content.get("ema"), content.get("model")] if isinstance(content, Mapping) else [content]
    for candidate in candidates:
        if isinstance(candidate, nn.Module):
            return candidate
    weights = find_state_dict(content)
    if weights is not None:
        raise StateDictWithoutModel(
            f"{checkpoint.path.name} holds weights but no network",
            expected="a checkpoint with the model itself under 'ema' or 'model'",
            received=f"a state dict of {len(weights)} tensors",
            hint="save the model with Ultralytics' model.save(), not its state_dict(); "
            "a timm checkpoint names its network beside the weights: backbone, num_classes, state_dict",
        )
    received = f"a dictionary with {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else type(content)
    raise NotAModel(
        f"{checkpoint.path.name} holds no model",
        expected="a checkpoint with the model itself under 'ema' or 'model'",
        received=str(received),
    )


def find_state_dict(content: Any) -> Mapping[str, torch.Tensor] | None:
    """The mapping of names to tensors in a checkpoint's content, or None."""
    places = [content]
    if isinstance(content, Mapping):
        places += [content.get(key) for key in ("state_dict", "model_state_dict", "ema", "model")]
    for place in places:
        if isinstance(place, Mapping) and place and all(isinstance(v, torch.Tensor) for v in place.values()):
            return place
    return None


def check_activation(activation: str) -> None:
    """Raise UnsafeCheckpoint unless the text is `nn.X(...)` or `torch.nn.X(...)` with literal arguments."""
    try:
        call = ast.parse(activation, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("not a call")  # noqa: TRY004 - of the text, which is what is wrong
        prefix, _, name = ast.unparse(call.func).rpartition(".")
        target = getattr(nn, name)
        if prefix not in ("nn", "torch.nn") or not (isinstance(target, type) and issubclass(target, nn.Module)):
            raise ValueError("not a class of torch.nn")
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(argument)
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError) as error:
        raise UnsafeCheckpoint(
            "the model's yaml carries an activation that is not a plain torch.nn layer; rebuilding would run it",
            names=[activation[:200]],
            expected="nn.X(...) or torch.nn.X(...) with literal arguments",
            received=repr(activation[:200]),
            hint="remove 'activation' from model.yaml and save the checkpoint again",
        ) from error


def _check_signature(path: Path, trusted: bool) -> None:
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a .pt file", received=str(path))
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise EmptyFile(f"{path.name} is empty", expected="a .pt file", received="0 bytes", hint="upload it again")
    if head.startswith(b"PK"):
        return
    if head[0] == 0x80 and head[1:2] in (b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        if trusted:
            return
        raise LegacyCheckpoint(
            f"{path.name} is a bare pickle, as torch wrote before 1.6, and may run any code",
            expected="the zip archive that torch.save writes",
            received="a pickle without an archive",
            hint=SAVE_AGAIN,
        )
    raise NotAModel(
        f"{path.name} is not a PyTorch checkpoint",
        expected="the zip archive that torch.save writes",
        received=_describe(head),
        hint="give the .pt file that training wrote",
    )


def _describe(head: bytes) -> str:
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8") if error.start > len(head) - 4 else "\0"
    if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return f"a text file that begins {text[:40]!r}"
    return f"bytes of no known kind, beginning {head[:8].hex()}"


def _corrupt(path: Path, received: str) -> CorruptFile:
    return CorruptFile(
        f"{path.name} is damaged or incomplete",
        expected="a whole archive as torch.save writes it",
        received=received,
        hint="upload the file again; if it stays so, " + SAVE_AGAIN,
    )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise _corrupt(path, f"an archive that cannot be read: {error}") from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise TorchScriptFile(
            f"{path.name} is a TorchScript archive",
            expected="a checkpoint that holds the Python model",
            received="a compiled program",
            hint="give the .pt that the TorchScript file was made from",
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise NotAModel(
            f"{path.name} is a zip archive, but not one of torch's",
            expected="an archive with data.pkl, as torch.save writes it",
            received=f"an archive with {names[:5]}",
        )
    if len(set(names)) != len(names):
        raise _corrupt(path, "an archive that holds an entry twice")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _corrupt(path, "a compressed archive, which torch.save never writes")
    # Asked of the directory: older releases of torch, which Jetsons have, cannot tell a record's size.
    largest = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if largest > MAX_PICKLE_MIB << 20:
        raise _corrupt(path, f"a pickle of {largest} bytes, where at most {MAX_PICKLE_MIB} MiB are read")


def _scan(path: Path, policy: CheckpointPolicy) -> set[str]:
    """Scan the pickles as torch's own reader sees them, so that no second reading of the archive can differ."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - torch.load's own reader, of no other name
        pickles = [name for name in reader.get_all_records() if name.endswith(".pkl")]
        if "data.pkl" not in pickles:
            raise _corrupt(path, "no data.pkl where torch looks for it")
        results = [scan_pickle(reader.get_record(name), policy) for name in pickles]
    except (RuntimeError, MalformedPickle) as error:
        raise _corrupt(path, str(error).splitlines()[0]) from error
    violations = [violation for result in results for violation in result.violations]
    if violations:
        raise UnsafeCheckpoint(
            f"{path.name} asks for more than a model needs: {', '.join(violations)}",
            names=violations,
            expected="only tensors and unmodified classes of torch.nn and ultralytics.nn",
            received=", ".join(violations),
            hint=TRUST_HINT,
        )
    return set().union(*(result.names for result in results))


def _load(path: Path, *, weights_only: bool) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        text = str(error).splitlines()[0]
        raise UnsafeCheckpoint(
            f"torch refused {path.name}: {text}", names=[text], received=text, hint=TRUST_HINT
        ) from error
    except ModuleNotFoundError as error:
        raise NotAModel(
            f"{path.name} needs a Python package that is not installed here",
            expected="a model of torch, torchvision or ultralytics alone",
            received=f"the module {error.name}",
        ) from error
    except Exception as error:  # a damaged pickle can end in any exception at all
        raise _corrupt(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if isinstance(content, torch.jit.ScriptModule):
        raise TorchScriptFile(f"{path.name} is a TorchScript archive", hint="give the .pt that it was made from")
    return content


def _activations(content: Any) -> Iterator[str]:
    """Every text that Ultralytics would evaluate if it rebuilt a model of this checkpoint from its yaml."""
    places = content.values() if isinstance(content, Mapping) else [content]
    for place in places:
        modules = place.modules() if isinstance(place, nn.Module) else ()
        for yaml in [getattr(module, "yaml", None) for module in modules] + [place]:
            if isinstance(yaml, Mapping) and yaml.get("activation"):
                yield str(yaml["activation"])
