"""The timing cache: how long each kernel took on this GPU, kept so that the next build need not measure it again.

One file for each TensorRT version and GPU: trtexec of 10.3 takes another GPU's times without a word. A file is read and
written under trtexec's own lock (`<file>.lock`, lockf; NVIDIA's `fileLock.cpp`), merged with what others have put there
meanwhile, and replaced whole. trtexec is handed the path and does the same by itself from 8.5 on.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.toolkit.onnx_file import write_whole
from app.toolkit.tensorrt.versions import Version, version_text

Say = Callable[[str, str], None]
"""Takes trtexec's letter of a severity, and the message."""


def timing_cache_path(folder: Path, *, version: Version, gpu_name: str, compute_capability: tuple[int, int]) -> Path:
    """`<folder>/trt-10.3.0_sm87_orin.cache`; nothing is made."""
    gpu = re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")
    return folder / f"trt-{version_text(version)}_sm{''.join(map(str, compute_capability))}_{gpu}.cache"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until nobody else, trtexec included, reads or writes the file. A lock is this process's, not a thread's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def attach(config: Any, path: Path, say: Say) -> Any:
    """Let a builder's config use the file's times; the returned cache must live until the build is over.

    A file that TensorRT does not take is set aside with a warning, and the build begins with an empty cache.
    """
    with locked(path):
        content = path.read_bytes() if path.is_file() else b""
        cache = _taken(config, content)
        if cache is None and content:
            _set_aside(path, say)
            content, cache = b"", _taken(config, b"")
    if content:
        say("I", f"Loaded {len(content)} bytes of timing cache from {path}")
    elif cache is not None:
        say("W", f"Could not read timing cache from: {path}. A new timing cache will be generated and written.")
    else:
        say("W", "TensorRT takes no timing cache here: every kernel is measured anew")
    return cache


def merge(config: Any, path: Path, say: Say) -> None:
    """Put a finished build's times to those in the file. A full disk is a warning: the engine is built."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with locked(path):
            content = path.read_bytes() if path.is_file() else b""
            other = config.create_timing_cache(content) if content else None
            if content and (other is None or not cache.combine(other, False)):
                _set_aside(path, say)
            data = bytes(cache.serialize())
            write_whole(data, path)
    except OSError as error:
        say("W", f"Could not write timing cache to: {path}: {error.strerror}")
        return
    say("I", f"Saved {len(data)} bytes of timing cache to {path}")


def _taken(config: Any, content: bytes) -> Any:
    """A cache that the config has taken, None where it has not: times of another GPU are never let in."""
    cache = config.create_timing_cache(content)
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def _set_aside(path: Path, say: Say) -> None:
    aside = path.with_name(f"{path.name}.refused")
    path.replace(aside)
    say("W", f"The timing cache is damaged or of another TensorRT or GPU: it was moved to {aside.name}")
