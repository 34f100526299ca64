"""From a torch network to an ONNX graph."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings

import onnx
import torch
import torch.onnx
from onnx import ModelProto

from app.toolkit.errors import ExportFailed, UnsupportedOpset
from app.toolkit.models.base import ModelAdapter
from app.toolkit.onnx_file import set_metadata, slim

# What torch's tracing exporter writes; 17 is the oldest that holds all of YOLO's operators in one piece each.
OPSETS = range(11, 21)
DEFAULT_OPSET = 17

# torch loads its tables of operators at the first export, 100 ms in every fresh process; here a fork server has them.
# The names are torch's own affair, so one that is gone costs the time and nothing else.
for _opset in range(7, OPSETS.stop):
    with contextlib.suppress(ImportError):
        importlib.import_module(f"torch.onnx._internal.torchscript_exporter.symbolic_opset{_opset}")


def onnx_from_torch(
    adapter: ModelAdapter,
    *,
    input_size: tuple[int, int],
    batch_size: int = 1,
    opset: int = DEFAULT_OPSET,
    dynamic: bool = False,
) -> ModelProto:
    """Export an adapter's network as a slimmed float32 graph with the family's metadata.

    `input_size` is (H, W) in px. `dynamic` frees the axes that `adapter.dynamic_axes` names.
    Raises UnsupportedOpset, ExportFailed; the input must have passed `adapter.check_input`.
    """
    if opset not in OPSETS:
        raise UnsupportedOpset(
            f"opset {opset} cannot be written",
            expected=f"an opset from {OPSETS.start} to {OPSETS.stop - 1}",
            received=str(opset),
            hint=f"{DEFAULT_OPSET} suits ONNX Runtime and TensorRT alike",
        )
    model = slim(_trace(adapter, input_size, batch_size, opset, dynamic))
    set_metadata(model, adapter.metadata(input_size, batch_size, dynamic=dynamic, half=False, opset=opset))
    return model


def _trace(
    adapter: ModelAdapter, input_size: tuple[int, int], batch_size: int, opset: int, dynamic: bool
) -> ModelProto:
    network = adapter.export_module(dynamic=dynamic)
    specs = adapter.input_specs(input_size, batch_size)
    # Adapters keep their networks so: another layout would be converted at every layer of the trace.
    examples = tuple(
        torch.zeros([int(axis) for axis in spec.shape]).contiguous(memory_format=torch.channels_last) for spec in specs
    )
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The tracing exporter is deprecated in torch and warns of every Python branch that it fixes; the parity
            # proof shows whether a fixed branch mattered. The newer exporter gives opset 18 and external data.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                examples,
                buffer,  # type: ignore[arg-type]  # torch annotates a path, and takes a file
                opset_version=opset,
                input_names=[spec.name for spec in specs],
                output_names=list(adapter.output_names),
                dynamic_axes=adapter.dynamic_axes() if dynamic else None,
                dynamo=False,
            )
    except Exception as error:  # the exporter raises its own errors, and whatever the network raises
        raise _export_failed(error, opset) from error
    return onnx.load_model_from_string(buffer.getvalue())


def _export_failed(error: Exception, opset: int) -> ExportFailed:
    unsupported = isinstance(error, torch.onnx.errors.UnsupportedOperatorError) or "opset" in str(error)
    higher = 18 if opset < 18 else OPSETS.stop - 1
    return ExportFailed(
        "the network could not be exported to ONNX",
        expected=f"a network whose operators exist in opset {opset}",
        received=f"{type(error).__name__}: {error}".strip().splitlines()[0],
        hint=f"try opset {higher}" if unsupported and higher != opset else "see the job's log for the operator",
    )
