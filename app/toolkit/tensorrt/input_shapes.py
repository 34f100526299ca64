"""The optimisation profile of an ONNX graph with free axes, chosen from one wished image size.

The rule: the batch goes from 1 to the largest asked for and is tuned for 1. Height and width of an image go from half
of the wished size, to the stride, up to the wished size, and are tuned for it: a larger maximum costs memory in every
engine. On a DLA all three are batch 1 at the wished size, as it takes no free axis. A static input needs no profile.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.toolkit.tensorrt.request import InputShapes

IMAGE_AXES = 4


def input_shapes(
    inputs: Mapping[str, tuple[int | str, ...]],
    input_size: tuple[int, int],
    *,
    max_batch: int = 1,
    stride: int = 32,
    fixed: bool = False,
) -> tuple[tuple[InputShapes, ...], tuple[str, ...]]:
    """The profile of each input with a free axis, and the names of inputs whose free axes no rule here covers.

    `inputs` as `GraphShapes.inputs` has them, `input_size` is (H, W) in px.
    """
    profiles, unknown = [], []
    for name, shape in inputs.items():
        if all(isinstance(axis, int) and axis > 0 for axis in shape):
            continue
        one = _profile(name, shape, input_size, max_batch, stride, fixed)
        if one is None:
            unknown.append(name)
        else:
            profiles.append(one)
    return tuple(profiles), tuple(unknown)


def _profile(
    name: str, shape: tuple[int | str, ...], size: tuple[int, int], max_batch: int, stride: int, fixed: bool
) -> InputShapes | None:
    least = size if fixed else (_half(size[0], stride), _half(size[1], stride))
    batch = 1 if fixed else max_batch
    image = len(shape) == IMAGE_AXES
    wanted = [(1, 1, batch), *([None, (least[0], size[0], size[0]), (least[1], size[1], size[1])] if image else [])]
    axes: list[tuple[int, int, int]] = []
    for index, axis in enumerate(shape):
        rule = wanted[index] if index < len(wanted) else None
        if isinstance(axis, int) and axis > 0:
            axes.append((axis, axis, axis))
        elif rule is None:
            return None
        else:
            axes.append(rule)
    low, usual, high = (tuple(axis[index] for axis in axes) for index in range(3))
    return InputShapes(name, low, usual, high)


def _half(side: int, stride: int) -> int:
    return min(side, max(-(-side // 2 // stride) * stride, stride))
