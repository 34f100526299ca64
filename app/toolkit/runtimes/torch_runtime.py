"""PyTorch in eager mode: the reference that every converted model is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.base import Array, CheckedRuntime, TensorSpec


class TorchRuntime(CheckedRuntime):
    """Runs a module. It must take the inputs in order and return a tensor or a flat sequence of tensors.

    `device` is "cpu", or "cuda" with or without a number, where a copy of the module runs without TF32, in full FP32.
    Raises RuntimeUnavailable for a GPU that torch does not see.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__("torch", inputs, outputs)
        self._module = module
        self._running = module
        self._threads = threads
        self._threads_before = 0
        self._device = _checked(device)
        self._tf32_before = (False, False)

    def _open(self) -> None:
        if self._device.type == "cuda":
            self._running = copy.deepcopy(self._module).to(self._device)  # what can fail comes first
            self._tf32_before = _tf32()
            _set_tf32((False, False))  # 10 of 23 fraction bits: its rounding would pass for the other model's
        self._threads_before = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        # oneDNN convolves channels-last without reordering: 35 ms against 60 for YOLOv8n at 640 on 2 threads.
        tensors = [torch.from_numpy(feeds[spec.name]).to(self._device) for spec in self.inputs]
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        with torch.inference_mode():
            results = self._running(*tensors)
        results = (results,) if isinstance(results, torch.Tensor) else results
        arrays = [result.contiguous().cpu().numpy() for result in results]
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def _close(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads_before)
        if self._device.type == "cuda":
            _set_tf32(self._tf32_before)
            self._running = self._module
            torch.cuda.empty_cache()  # an engine's or ONNX Runtime's allocator cannot use what torch keeps


def _checked(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeUnavailable(
            f"torch has no {name} here",
            expected="a GPU that torch sees",
            received=f"torch {torch.__version__} with {torch.cuda.device_count()} GPUs",
            hint="run it on the CPU, or look at nvidia-smi and at torch's CUDA version",
        )
    return device


def _tf32() -> tuple[bool, bool]:
    """Whether matrix products and cuDNN's convolutions may use TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(allowed: tuple[bool, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
