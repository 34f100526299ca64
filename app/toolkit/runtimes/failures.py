"""What the libraries that run models raise, which share no exception, as errors of ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from app.toolkit.errors import OutOfMemory, RuntimeUnavailable, ToolkitError

NO_MEMORY = re.compile(
    r"out ?of ?memory|not enough memory|bad[_ ]alloc|alloc_failed|could not be allocated"
    r"|(?:can't|cannot|failed to|unable to) allocate",
    re.IGNORECASE,
)
"""What torch, CUDA's libraries, ONNX Runtime's allocators and TensorRT write; their exceptions share no base."""
LIBRARIES = frozenset({"google", "onnxruntime", "pycuda", "tensorrt"})
"""The first is protobuf, which writes no graph of 2 GiB."""


@contextlib.contextmanager
def failures_told(what: str) -> Iterator[None]:
    """What a library raises becomes OutOfMemory or RuntimeUnavailable; a defect of ours passes."""
    try:
        yield
    except Exception as error:
        received = next(iter(str(error).splitlines()), type(error).__name__)
        if not isinstance(error, OutOfMemory) and is_out_of_memory(error):
            raise OutOfMemory(
                f"there is not enough memory for {what}",
                expected="memory for the weights, the activations and the images",
                received=received,
                hint="a smaller batch or input",
            ) from error
        if not isinstance(error, ToolkitError) and _is_a_library_s(error):
            raise RuntimeUnavailable(
                f"{what} failed", expected="a model that the runtime can run", received=received
            ) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library says that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or NO_MEMORY.search(str(error)) is not None


def _is_a_library_s(error: BaseException) -> bool:
    """torch raises RuntimeError, ONNX Runtime and the libraries of a GPU classes of their own without a common base."""
    return isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] in LIBRARIES
