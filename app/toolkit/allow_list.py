"""Which names a checkpoint of a known model family may use: the policy of `pickle_scan`, and what torch may resolve.

Measured on torch 2.15 and ultralytics 8.4.190: YOLOv8n needs 15 names beyond torch's own, YOLO11n and YOLO11m 21, 22
together, every one a class of `torch.nn` or `ultralytics.nn`. The few others here are what older or unstripped
checkpoints hold: NumPy numbers, paths, the training arguments' namespace, a classifier's transforms.
"""

from __future__ import annotations

import enum
import importlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torchvision.transforms.functional import InterpolationMode
from ultralytics.utils import IterableSimpleNamespace

from app.toolkit.pickle_scan import Global, Instance, Items

MODEL_MODULES = re.compile(r"torch\.nn\.modules(\.\w+)?|ultralytics\.nn\.(tasks|modules(\.\w+)?)")
LOSS_MODULES = ("ultralytics.utils.loss", "ultralytics.utils.tal")
NAMESPACE = "ultralytics.utils.IterableSimpleNamespace"
INTERPOLATION = "torchvision.transforms.functional.InterpolationMode"
TRANSFORMS = tuple(f"torchvision.transforms.transforms.{n}" for n in ("Compose", "Resize", "CenterCrop", "ToTensor"))
NORMALIZE = "torchvision.transforms.transforms.Normalize"
PATHS = tuple(f"{m}.{c}" for m in ("pathlib", "pathlib._local") for c in ("PosixPath", "WindowsPath"))
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NUMBER_DTYPE = re.compile(r"[<>|=]?[biuf][1248]")

# Names that Ultralytics' own loader maps to their present ones.
ALIASES = {
    "ultralytics.yolo.utils.IterableSimpleNamespace": NAMESPACE,
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
}

_STORAGES = frozenset(
    f"torch.{kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
_DTYPES = frozenset(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype))


def guarded_getattr(owner: Any, name: str) -> Any:
    """What `builtins.getattr` becomes while a checkpoint is read: old segment and pose heads keep `Detect.forward`."""
    if isinstance(owner, type) and issubclass(owner, nn.Module) and name == "forward":
        return owner.forward
    if isinstance(owner, type) and issubclass(owner, enum.Enum) and name in owner.__members__:
        return owner[name]
    raise AttributeError(f"a checkpoint may not look up {name!r} on {owner!r}")


class CheckpointPolicy:
    """The `pickle_scan.Policy` of checkpoints. It also collects what each known name resolves to, for torch."""

    def __init__(self) -> None:
        self._resolved: dict[str, Any] = {}
        self._written_as: dict[str, set[str]] = {}

    def canonical(self, module: str, name: str) -> str:
        """Python 2's names become Python 3's, as torch reads them; then old aliases become the present name."""
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[(module, name)]
        elif module in IMPORT_MAPPING:
            module = IMPORT_MAPPING[module]
        written = f"{module}.{name}"
        full_name = ALIASES.get(written, written)
        self._written_as.setdefault(full_name, set()).add(written)
        return full_name

    def knows(self, name: str) -> bool:
        """Any role at all."""
        return name in _CALLABLE or self.is_storage(name) or self.is_data(name) or self.is_model_class(name)

    def is_model_class(self, name: str) -> bool:
        """A class of torch.nn or ultralytics.nn that is an `nn.Module`, a loss, or a classifier's transform."""
        if name not in self._resolved:
            self._resolved[name] = _resolve_class(name)
        return self._resolved[name] is not None

    def is_storage(self, name: str) -> bool:
        """torch's typed storages, which only a persistent id may use."""
        return name in _STORAGES

    def is_data(self, name: str) -> bool:
        """torch's dtypes are values, not code."""
        return name in _DTYPES

    def may_call(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Only the table below; a class among the arguments is for `getattr` alone."""
        check = _CALLABLE.get(name)
        return check is not None and check(self, arguments)

    def may_fill(self, name: str, state: Any) -> bool:
        """Model instances, OrderedDict's attributes, the namespace, and a plain number's dtype."""
        if name == "numpy.dtype":
            return isinstance(state, Items) and state.values[2:] == (None, None, None, -1, -1, 0)
        return name in ("collections.OrderedDict", NAMESPACE) or self.is_model_class(name)

    def torch_globals(self, names: set[str]) -> list[Any]:
        """`(object, "module.name")` pairs for `torch.serialization.safe_globals`, for just these names."""
        pairs: list[Any] = []
        for name in sorted(names):
            target = self._resolved.get(name) or _EXTRA_TARGETS.get(name)
            if target is not None:
                pairs += [(target, written) for written in sorted(self._written_as[name])]
        if "numpy.dtype" in names:  # the class of a dtype object is made at run time and never named in the file
            pairs += [type(np.dtype(code)) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")]
        return pairs


def _resolve_class(name: str) -> type | None:
    module, _, attribute = name.rpartition(".")
    by_family = MODEL_MODULES.fullmatch(module) is not None
    if not (by_family or module in LOSS_MODULES or name in TRANSFORMS or name == NORMALIZE):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError:
        return None
    if not isinstance(found, type):
        return None
    if by_family:
        return found if issubclass(found, nn.Module) else None
    return found if found.__module__ == module else None


# --- which calls are allowed, and what their arguments must look like


def _no_class_inside(policy: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    return not any(
        (isinstance(value, Items) and value.leak) or (isinstance(value, Global) and not policy.is_data(value.name))
        for value in arguments
    )


def _nothing(_: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    return not arguments


def _only_text(_: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    return all(isinstance(value, str) for value in arguments)


def _latin1(_: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    return len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"


def _number_dtype(_: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    code = arguments[0] if arguments else None
    return isinstance(code, str) and NUMBER_DTYPE.fullmatch(code) is not None


def _number(_: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    return arguments[:1] == (Instance("numpy.dtype"),) and arguments[1:] == (Instance("_codecs.encode"),)


def _known_attribute(policy: CheckpointPolicy, arguments: tuple[Any, ...]) -> bool:
    if len(arguments) != 2 or not isinstance(arguments[0], Global) or not isinstance(arguments[1], str):
        return False
    owner, name = arguments[0].name, arguments[1]
    if owner == INTERPOLATION:
        return name.isidentifier() and name.isupper()
    return name == "forward" and policy.is_model_class(owner)


_CALLABLE: dict[str, Callable[[CheckpointPolicy, tuple[Any, ...]], bool]] = {
    "torch._utils._rebuild_tensor": _no_class_inside,
    "torch._utils._rebuild_tensor_v2": _no_class_inside,
    "torch._utils._rebuild_tensor_v3": _no_class_inside,
    "torch._utils._rebuild_parameter": _no_class_inside,
    "torch.Size": _no_class_inside,
    "torch.device": _no_class_inside,
    "collections.OrderedDict": _no_class_inside,
    "builtins.set": _no_class_inside,
    "_codecs.encode": _latin1,
    "numpy.dtype": _number_dtype,
    **dict.fromkeys(NUMPY_SCALARS, _number),
    **dict.fromkeys(PATHS, _only_text),
    NAMESPACE: _nothing,
    INTERPOLATION: _only_text,
    "builtins.getattr": _known_attribute,
}


_EXTRA_TARGETS: dict[str, Any] = {
    "numpy.dtype": np.dtype,
    **dict.fromkeys(NUMPY_SCALARS, np.float64(0).__reduce__()[0]),
    **dict.fromkeys(PATHS, pathlib.PurePosixPath),
    NAMESPACE: IterableSimpleNamespace,
    INTERPOLATION: InterpolationMode,
    "builtins.getattr": guarded_getattr,
}
