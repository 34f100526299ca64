"""What a Jetson's DLA cores will not take of an ONNX graph, told before the build, and which input size helps.

TensorRT decides layer by layer while it builds; a busy core is no reason for it. A smaller input brings axes under
8192, which is one obstacle: in builds on Orin the heads of YOLOv8 and YOLO11 went to the GPU for other reasons too,
which `dla_rules` names and which hold at any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.toolkit.tensorrt.dla_rules import IMAGE_RANK, MAX_AXIS, Refusal, non_batch, refusals
from app.toolkit.tensorrt.shapes import GraphShapes, Shape
from app.toolkit.tensorrt.targets import X86, Target
from app.toolkit.tensorrt.versions import Version, version_text

LAST_CHECKED: Version = (10, 8)  # JetPack 5 and 6 go to 10.7; of 10.8 to 10.16 nothing is published
FITTING_SIZES = 2
ONE_OBSTACLE = (
    "a smaller input removes this obstacle, not every one: on Orin, YOLO heads were refused for other reasons too"
)


@dataclass(frozen=True)
class LargeAxis:
    """A tensor with an axis over 8192, and the node that makes it ("" for an input)."""

    tensor: str
    shape: tuple[int | None, ...]
    axis: int
    node: str

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class FittingSize:
    """An input size (H, W) in px at which the largest of those axes is `axis`, which fits."""

    input_size: tuple[int, int]
    axis: int

    def __str__(self) -> str:
        return f"{self.input_size[0]}x{self.input_size[1]} gives {self.axis}"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {"input_size": list(self.input_size), "axis": self.axis}


@dataclass(frozen=True)
class DlaReport:
    """`available`: whether that TensorRT has DLA on that machine, None where it cannot be told, and `why`.

    `refused_nodes` of `nodes` go to the GPU by at least one rule; more may.
    """

    available: bool | None
    why: str
    large_axes: tuple[LargeAxis, ...]
    fitting_sizes: tuple[FittingSize, ...]
    refused: tuple[Refusal, ...]
    refused_nodes: int
    nodes: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a person must know: the machine first, then `placement`."""
        if self.available is True:
            return self.placement
        begins = "no DLA" if self.available is False else "cannot tell whether there is DLA"
        return (f"{begins}: {self.why}", *self.placement)

    @property
    def placement(self) -> tuple[str, ...]:
        """Why parts of the graph will run on the GPU."""
        return tuple(_placement(self))

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "available": self.available,
            "why": self.why,
            "large_axes": [one.as_dict() for one in self.large_axes],
            "fitting_sizes": [one.as_dict() for one in self.fitting_sizes],
            "refused": [one.as_dict() for one in self.refused],
            "refused_nodes": self.refused_nodes,
            "nodes": self.nodes,
            "sentences": list(self.sentences),
        }


def dla_report(
    shapes: GraphShapes, feeds: Mapping[str, tuple[int, ...]], target: Target, *, stride: int = 32
) -> DlaReport:
    """Read a graph as it will be built: `feeds` are the inputs' shapes, `stride` is what sides are multiples of."""
    at = shapes.at(feeds)
    large = tuple(_large_axes(shapes, at))
    found, concerned = refusals(shapes, at, target.tensorrt)
    available, why = dla_available(target)
    fitting = fitting_sizes(shapes, feeds, at, stride) if large else ()
    return DlaReport(available, why, large, fitting, tuple(found), len(concerned), len(shapes.nodes))


def dla_available(target: Target) -> tuple[bool | None, str]:
    """Has that TensorRT DLA on that machine, and why. NVIDIA's documents of 11.0 to 11.4.1 are the source."""
    if target.dla_cores == 0:
        return False, "this machine has no DLA core" if target.arch == X86 else "the device has no DLA core"
    if "Thor" in (target.gpu_name or ""):
        return False, "Jetson Thor has no DLA"
    by_version, why = _by_version(target.tensorrt)
    if by_version is False:
        return False, why
    if target.dla_cores is None:
        return None, f"{why}; how many DLA cores the machine has is not known (ask builder.num_DLA_cores)"
    return by_version, f"{why}; {target.dla_cores} DLA core(s)"


def _by_version(version: Version | None) -> tuple[bool | None, str]:
    if version is None:
        return None, "which TensorRT it is is not known"
    text = f"TensorRT {version_text(version)}"
    if version < LAST_CHECKED:
        return True, f"{text} has DLA"
    if version < (11,):
        return None, f"of DLA in {text} nothing is published: JetPack's last of 10 is 10.7 at most"
    if version < (11, 4):
        return False, f"{text} has no DLA: it left with 11.0 and is back from 11.4.1 on"
    if version[:3] == (11, 4, 0):
        return False, f"{text} has DLA on Windows on ARM only; Jetson AGX Orin has it from 11.4.1 on"
    return None, f"{text} has DLA on Jetson AGX Orin with JetPack 7.2.2 or later only"


def _large_axes(shapes: GraphShapes, at: Mapping[str, Shape]) -> Iterator[LargeAxis]:
    """The graph's outputs first, as those are the names that people know."""
    makers = {name: f"{node.name or name} ({node.op_type})" for node in shapes.nodes for name in node.output}
    for name in sorted(at, key=lambda name: name not in shapes.outputs):
        largest = max((axis or 0 for axis in non_batch(at, name)), default=0)
        if largest > MAX_AXIS:
            yield LargeAxis(name, at[name], largest, makers.get(name, ""))


# -- which size fits --------------------------------------------------------------------------------------------------
def fitting_sizes(
    shapes: GraphShapes, feeds: Mapping[str, tuple[int, ...]], at: Mapping[str, Shape], stride: int
) -> tuple[FittingSize, ...]:
    """The largest input sizes of the same aspect, to the stride, at which every axis is at most 8192.

    The shapes are inferred at each size. Where the export baked a size in, past which inference is wrong or knows
    nothing (a YOLO head, the attention of YOLO11), an axis that is the sum of feature maps' areas (8400 is 80*80 +
    40*40 + 20*20) shrinks with them.

    Empty where an axis does not depend on the input's height and width, or there is no single image.
    """
    images = [name for name, shape in feeds.items() if len(shape) == IMAGE_RANK]
    if len(images) != 1:
        return ()
    name, shape = images[0], feeds[images[0]]
    size = (shape[2], shape[3])
    wanted = {axis for tensor in at for axis in non_batch(at, tensor) if axis is not None and axis > MAX_AXIS}
    parts = {axis: _parts(shapes, at, axis) for axis in wanted}
    found: list[FittingSize] = []
    for smaller in _smaller(size, stride):
        # No axis shrinks faster than the area, so that what is too large by the area alone need not be tried.
        if max(wanted) * smaller[0] * smaller[1] > MAX_AXIS * size[0] * size[1]:
            continue
        there = shapes.at({**feeds, name: (*shape[:2], *smaller)})
        axes = [
            _axis_then(axis, _inferred_then(axis, at, there), _scaled(parts[axis], size, smaller, stride))
            for axis in wanted
        ]
        if None in axes:
            return ()
        largest = max(axis for axis in axes if axis is not None)
        if largest <= MAX_AXIS:
            found.append(FittingSize(smaller, largest))
        if len(found) == FITTING_SIZES:
            break
    return tuple(found)


def _smaller(size: tuple[int, int], stride: int) -> Iterator[tuple[int, int]]:
    for rows in range((size[0] - 1) // stride, 0, -1):
        columns = rows * stride * size[1] // size[0] // stride
        if columns:
            yield rows * stride, columns * stride


def _parts(shapes: GraphShapes, at: Mapping[str, Shape], axis: int) -> list[int]:
    """The sizes that were joined to an axis where it first appears; itself where it was not joined."""
    for node in shapes.nodes:
        made = at.get(node.output[0], ())
        if axis in made:
            index = made.index(axis)
            sizes = [at.get(name, ())[index : index + 1] for name in node.input] if node.op_type == "Concat" else []
            return [size for one in sizes for size in one if size is not None] or [axis]
    return [axis]


def _scaled(parts: list[int], size: tuple[int, int], smaller: tuple[int, int], stride: int) -> int | None:
    """The sum of feature maps' areas at another input size; None where one of the parts is no such area."""
    steps = [step for step in range(1, stride + 1) if stride % step == 0 and not (size[0] % step or size[1] % step)]
    areas = {size[0] // step * (size[1] // step): smaller[0] // step * (smaller[1] // step) for step in steps}
    return sum(areas[part] for part in parts) if areas.keys() >= set(parts) else None


def _inferred_then(axis: int, at: Mapping[str, Shape], there: Mapping[str, Shape]) -> set[int | None]:
    """What tensors' axes of that size become; None stands for one that is not known there."""
    becomes: set[int | None] = set()
    for tensor, shape in at.items():
        after = there.get(tensor, (None,) * len(shape))
        becomes.update(new for old, new in zip(shape, after, strict=False) if old == axis)
    return becomes


def _axis_then(axis: int, inferred: set[int | None], scaled: int | None) -> int | None:
    """None where the axis stays what it is, or nothing tells what it becomes."""
    if inferred == {axis}:
        return None
    known = [new for new in inferred if new is not None and new != axis]
    is_proven = len(known) == len(inferred)
    return max(known, default=None) if is_proven or scaled is None else scaled


def _placement(report: DlaReport) -> Iterator[str]:
    if report.large_axes:
        first, others = report.large_axes[0], len(report.large_axes) - 1
        more = f", and so have {others} more tensors" if others else ""
        sizes = ", ".join(map(str, report.fitting_sizes)) or "no smaller input of the same aspect brings it under"
        yield (
            f"{first.tensor} has an axis of {first.axis} (over {MAX_AXIS}){more}: what touches them runs on the GPU; "
            f"{sizes}"
        )
        if report.fitting_sizes:
            yield ONE_OBSTACLE
    if report.refused_nodes:
        rules = ", ".join(f"{one.rule} {one.count}" for one in report.refused)
        yield f"at least {report.refused_nodes} of {report.nodes} nodes go to the GPU ({rules})"
