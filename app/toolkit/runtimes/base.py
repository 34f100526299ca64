"""The seam between a model and what runs it: opened with `with`, told `infer(feeds)`, closed.

The checks of names, dtypes and shapes stand here once, so every runtime refuses the same feeds in the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from app.toolkit.errors import FeedMismatch

Array = npt.NDArray[Any]
Self = TypeVar("Self", bound="CheckedRuntime")


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: its name, NumPy dtype name, and axes, each a size or the name of a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Name, dtype and shape as JSON has them."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


class Runtime(Protocol):
    """Runs one model. `inputs` and `outputs` are known before it is opened."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __enter__(self) -> Runtime:
        """Take what running needs: threads, device memory."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; the runtime cannot be used again."""
        ...

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run. Arrays by input name in, arrays by output name out. Raises FeedMismatch."""
        ...


class CheckedRuntime(ABC):
    """What every runtime does alike: the open state and the checks. A subclass fills `_open`, `_run` and `_close`."""

    def __init__(self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._is_open = False

    def __enter__(self: Self) -> Self:
        self._open()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._close()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run, after the checks. The runtime must be open."""
        if not self._is_open:
            raise RuntimeError(f"the {self.name} runtime is not open: use it inside `with`")
        check_feeds(self.inputs, feeds)
        return self._run(feeds)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _close(self) -> None: ...


def fill_batch(tensor: Array, spec: TensorSpec) -> Array:
    """One image's tensor [1, ...] as often as the input's batch, if that is fixed, asks for."""
    batch = spec.shape[0] if spec.shape else 1
    return np.repeat(tensor, batch, axis=0) if isinstance(batch, int) and batch > 1 else tensor


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raise FeedMismatch unless the feeds are exactly the inputs, by name, dtype and shape."""
    wanted = {spec.name for spec in inputs}
    if set(feeds) != wanted:
        raise FeedMismatch(
            "the inputs' names do not match", expected=", ".join(sorted(wanted)), received=", ".join(sorted(feeds))
        )
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise FeedMismatch(
                f"input {spec.name} has the wrong dtype",
                expected=spec.dtype,
                received=str(array.dtype),
                hint=f"convert it with .astype('{spec.dtype}')",
            )
        if not _fits(array.shape, spec.shape):
            raise FeedMismatch(
                f"input {spec.name} has the wrong shape",
                expected=str(list(spec.shape)),
                received=str(list(array.shape)),
            )


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(isinstance(w, str) or w == s for s, w in zip(shape, wanted, strict=True))
