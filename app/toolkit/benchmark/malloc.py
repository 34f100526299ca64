"""glibc's malloc, which alone decides whether PyTorch on a CPU takes one time or twice that.

PyTorch asks malloc for every tensor of every call. What malloc gives back to the kernel at the call's end comes back
page by page, each zeroed by the kernel, and whether it does so depends on what the process did before: one YOLOv8n at
batch 16 took 420 ms or anything from 590 to 980 ms on the same two cores (docs/measured.md). Runtimes with an allocator
of their own, as ONNX Runtime's, keep what they have; so it is kept here while PyTorch is timed.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # mallopt(3), malloc.h
NEVER = -1
DEFAULT_MMAP_MAX = 65_536
HIGHEST_MMAP_THRESHOLD = 32 << 20
"""What the default, which moves with what is freed, has come to in a process that ran a network."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """malloc keeps what is freed; it gives it back again afterwards. Nothing changes where there is no glibc.

    mallopt has no way to ask: what is restored is the state that the default reaches, not the one that was found.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    libc.mallopt(MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(MMAP_THRESHOLD, HIGHEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * HIGHEST_MMAP_THRESHOLD)


def give_back() -> None:
    """Everything that is free to the kernel: else whatever runs next is given it, and seems to need less memory."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
