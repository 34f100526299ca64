"""Everything that can be known of a build before it starts, in a fraction of a second and without TensorRT.

Problems are what would fail the build or make its engine useless; warnings are what the user should know and may want.
What cannot be told (a TensorRT version, the number of DLA cores) is a warning that says so, never a silent yes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto, TensorProto

from app.toolkit.onnx_file import load_onnx
from app.toolkit.onnx_lint import RELEASES, LintReport, lint
from app.toolkit.tensorrt.dla import DlaReport, dla_report
from app.toolkit.tensorrt.dla_rules import QDQ_FROM
from app.toolkit.tensorrt.input_shapes import input_shapes
from app.toolkit.tensorrt.memory import MemoryEstimate, memory_estimate
from app.toolkit.tensorrt.request import DEFAULT_WORKSPACE_MIB, InputShapes, Int8Source, Precision
from app.toolkit.tensorrt.shapes import GraphShapes
from app.toolkit.tensorrt.targets import DeviceProfile, Target, differences, target_of
from app.toolkit.tensorrt.versions import Version, lint_release, version_text

DlaPolicy = Literal["prefer", "strict"]
Severity = Literal["error", "warning"]

DEFAULT_STRIDE = 32
TYPED_ONLY_FROM: Version = (11,)
"""From here on a graph's own types are the precision: no --fp16, no --int8, no calibration."""


@dataclass(frozen=True)
class Wish:
    """What is asked for. `device` is gpu, dla (core 0), dla0 or dla1; `input_size` is (H, W) in px, for free axes only.

    `int8_from` as in `BuildRequest`; None takes the graph's own Q/DQ nodes, if it has any. `profile` None stands for
    whatever machine this is. `workspace_mib` None takes the profile's, else DEFAULT_WORKSPACE_MIB.
    """

    precision: Precision
    device: str = "gpu"
    dla_policy: DlaPolicy = "prefer"
    workspace_mib: int | None = None
    input_size: tuple[int, int] = (640, 640)
    max_batch: int = 1
    int8_from: Int8Source | None = None
    profile: DeviceProfile | None = None

    @property
    def workspace(self) -> int:
        """In MiB, settled."""
        if self.workspace_mib is not None:
            return self.workspace_mib
        return DEFAULT_WORKSPACE_MIB if self.profile is None else self.profile.workspace_mib

    @property
    def dla_core(self) -> int | None:
        """The DLA core's index; None for the GPU."""
        return int(self.device[3:] or 0) if self.device.startswith("dla") else None


@dataclass(frozen=True)
class Problem:
    """One thing found: what it is, where in the graph, what to do instead."""

    rule: str
    severity: Severity
    what: str
    where: tuple[str, ...] = ()
    instead: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "where": list(self.where)}


@dataclass(frozen=True)
class Preflight:
    """One ONNX file, one wish, one machine. `target` is the machine that the build is for, `shapes` its profile."""

    onnx_name: str
    wish: Wish
    target: Target
    built_from: str
    shapes: tuple[InputShapes, ...]
    lint: LintReport
    dla: DlaReport | None
    memory: MemoryEstimate
    found: tuple[Problem, ...] = field(default=())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What stands in the way."""
        return tuple(one for one in self.found if one.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is to be known."""
        return tuple(one for one in self.found if one.severity == "warning")

    @property
    def verdict(self) -> str:
        """One sentence."""
        version = version_text(self.target.tensorrt)
        build = f"{self.onnx_name} to a {self.wish.precision} engine on {self.wish.device}, TensorRT {version}"
        if self.problems:
            return f"{build}: will not do: {'; '.join(one.what for one in self.problems)}"
        if self.warnings:
            return f"{build}: nothing known stands in the way, {len(self.warnings)} warning(s)"
        return f"{build}: nothing known stands in the way"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "verdict": self.verdict,
            "ok": not self.problems,
            "problems": [one.as_dict() for one in self.problems],
            "warnings": [one.as_dict() for one in self.warnings],
            "built_from": self.built_from,
            "workspace_mib": self.wish.workspace,
            "dynamic": bool(self.shapes),
            "profile": {
                one.name: {"min": list(one.minimum), "opt": list(one.optimum), "max": list(one.maximum)}
                for one in self.shapes
            },
            "target": self.target.as_dict(),
            "memory": self.memory.as_dict(),
            "dla": None if self.dla is None else self.dla.as_dict(),
            "lint": self.lint.as_dict(),
        }


@dataclass(frozen=True)
class _Case:
    """What the checks look at."""

    onnx_name: str
    wish: Wish
    here: Target
    target: Target
    command_line: str
    built_from: str
    stride: int
    dynamic: bool
    unknown_inputs: tuple[str, ...]
    lint: LintReport
    dla: DlaReport | None
    memory: MemoryEstimate


def preflight(onnx_path: Path, wish: Wish, here: Target, *, command_line: str = "") -> Preflight:
    """Look at a build before it starts. `here` is this machine, with the TensorRT version that its builder has.

    `command_line` is the trtexec line for the profile's machine, told where that is not this one.
    Raises FileMissing, EmptyFile, NotAModel or CorruptFile for the ONNX file.
    """
    model = load_onnx(onnx_path)
    graph = GraphShapes(model)
    elsewhere = wish.profile is not None and bool(differences(wish.profile, here))
    target = target_of(wish.profile) if wish.profile is not None and elsewhere else here
    stride = stride_of(model)
    shapes, unknown = input_shapes(
        graph.inputs, wish.input_size, max_batch=wish.max_batch, stride=stride, fixed=wish.dla_core is not None
    )
    feeds = _feeds(graph, shapes)
    case = _Case(
        onnx_name=onnx_path.name,
        wish=wish,
        here=here,
        target=target,
        command_line=command_line,
        built_from=built_from(model),
        stride=stride,
        dynamic=graph.is_dynamic,
        unknown_inputs=unknown,
        lint=_lint_of(model, onnx_path.parent, target.tensorrt),
        dla=None if wish.dla_core is None else dla_report(graph, feeds, target, stride=stride),
        memory=memory_estimate(model, graph, graph.at(feeds), wish.precision),
    )
    found = sorted((one for check in _CHECKS for one in check(case)), key=lambda one: one.severity)
    return Preflight(
        onnx_path.name, wish, target, case.built_from, shapes, case.lint, case.dla, case.memory, tuple(found)
    )


def built_from(model: ModelProto) -> str:
    """What a graph is, in the manifest's words: "qdq onnx", "fp16 onnx" or "fp32 onnx"."""
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.node):
        return "qdq onnx"
    halves = sum(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    floats = sum(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer)
    return "fp16 onnx" if halves > floats else "fp32 onnx"


def stride_of(model: ModelProto) -> int:
    """What an image's sides are multiples of, from the export's metadata; 32 where it does not say."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "stride"), "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else DEFAULT_STRIDE


def _lint_of(model: ModelProto, folder: Path, version: Version | None) -> LintReport:
    release = lint_release(version) if version else None
    report = lint(model, folder)
    return report.restricted_to((release,)) if release else report


def _feeds(graph: GraphShapes, shapes: tuple[InputShapes, ...]) -> dict[str, tuple[int, ...]]:
    """The largest shape of each input; a free axis that no rule covers counts as 1."""
    static = {
        name: tuple(axis if isinstance(axis, int) else 1 for axis in shape) for name, shape in graph.inputs.items()
    }
    return static | {one.name: one.maximum for one in shapes}


# -- checks -------------------------------------------------------------------------------------------------------
def _machine(case: _Case) -> Iterator[Problem]:
    profile = case.wish.profile
    differs = differences(profile, case.here) if profile else ()
    if profile and differs:
        instead = f"copy {case.onnx_name} to a {profile.title} and build it there"
        yield Problem(
            "OTHER_MACHINE",
            "error",
            f"an engine for {profile.title} cannot be built on this machine",
            differs,
            f"{instead}: {case.command_line}" if case.command_line else instead,
        )


def _release(case: _Case) -> Iterator[Problem]:
    version = case.target.tensorrt
    if version is None:
        what = "cannot tell which TensorRT will build it: its release's rules were not applied alone"
        yield Problem("TENSORRT_UNKNOWN", "warning", what, instead="run where trtexec or tensorrt is installed")
    elif lint_release(version) is None:
        what = f"TensorRT {version_text(version)} is not among the releases that are known here"
        yield Problem("TENSORRT_UNSUPPORTED", "error", what, instead="TensorRT 8.2 to 11.x")


def _profile(case: _Case) -> Iterator[Problem]:
    profile, wish = case.wish.profile, case.wish
    if profile is None:
        return
    if wish.precision not in profile.precisions:
        what = f"{profile.title} does not compute in {wish.precision}"
        yield Problem("PRECISION_NOT_THERE", "error", what, instead=f"precision {profile.precision}")
    if profile.max_batch is not None and wish.max_batch > profile.max_batch:
        what = f"a batch of {wish.max_batch} is more than {profile.title} is built for"
        yield Problem("BATCH_TOO_LARGE", "error", what, instead=f"a batch of {profile.max_batch}")
    if wish.workspace > profile.workspace_mib:
        what = f"a workspace of {wish.workspace} MiB is more than the profile's {profile.workspace_mib}"
        yield Problem("WORKSPACE_TOO_LARGE", "warning", what, instead=f"workspace_mib {profile.workspace_mib}")


def _from_lint(case: _Case) -> Iterator[Problem]:
    known = case.lint.releases != RELEASES
    for one in case.lint.findings:
        if one.rule == "DYNAMIC_AXES":  # the profile answers it
            continue
        certain = known or set(one.releases) == set(RELEASES)
        severity: Severity = "error" if one.severity == "error" and certain else "warning"
        what = one.what if certain else f"TensorRT {', '.join(one.releases)}: {one.what}"
        yield Problem(one.rule, severity, what, one.nodes, one.instead)


def _int8(case: _Case) -> Iterator[Problem]:
    is_qdq, source = case.built_from == "qdq onnx", case.wish.int8_from
    if case.wish.precision != "int8":
        if is_qdq:
            what = f"the ONNX is quantised (Q/DQ), which {case.wish.precision} does not build"
            yield Problem("QDQ_NEEDS_INT8", "error", what, instead="precision int8, or the ONNX before quantisation")
        return
    if not is_qdq and source in {None, "qdq"}:
        what = "INT8 has no ranges: no calibration and no Q/DQ in the ONNX; TensorRT would invent them and succeed"
        yield Problem(
            "INT8_WITHOUT_RANGES", "error", what, instead="calibration images, or a Q/DQ ONNX (quantize_onnx)"
        )
    elif source not in {None, "qdq"} and _typed_only(case):
        what = f"TensorRT {version_text(case.target.tensorrt)} has no calibration: INT8 is in the ONNX"
        yield Problem("CALIBRATION_GONE", "error", what, instead="a Q/DQ ONNX (quantize_onnx, target tensorrt)")
    elif source not in {None, "qdq"} and is_qdq:
        what = "the ONNX has Q/DQ already, so that a calibration is not used"
        yield Problem("CALIBRATION_NOT_USED", "warning", what, instead="the ONNX before quantisation, to calibrate it")


def _types(case: _Case) -> Iterator[Problem]:
    if case.built_from == "fp16 onnx" and case.wish.precision == "fp32":
        what = "the ONNX holds FP16 weights: an fp32 engine has FP16's accuracy"
        yield Problem("FP16_GRAPH", "warning", what, instead="the FP32 export")
    if case.built_from == "fp32 onnx" and case.wish.precision == "fp16" and _typed_only(case):
        what = f"TensorRT {version_text(case.target.tensorrt)} takes the precision from the ONNX, which is FP32"
        yield Problem("CAST_FIRST", "warning", what, instead="it is cast to FP16 first, and the engine built from that")


def _typed_only(case: _Case) -> bool:
    return case.target.tensorrt is not None and case.target.tensorrt >= TYPED_ONLY_FROM


def _inputs(case: _Case) -> Iterator[Problem]:
    if case.unknown_inputs:
        what = "these inputs have free axes for which there is no rule"
        yield Problem("SHAPES_NEEDED", "error", what, case.unknown_inputs, "export the ONNX with static shapes")
    odd = [side for side in case.wish.input_size if side < 1 or side % case.stride]
    if odd and case.dynamic:
        what = f"the input's sides must be multiples of {case.stride} px, {odd[0]} is not"
        yield Problem("SIZE_NOT_A_MULTIPLE", "error", what, instead=f"multiples of {case.stride}, for example 640x640")


def _dla(case: _Case) -> Iterator[Problem]:
    report, core, cores = case.dla, case.wish.dla_core, case.target.dla_cores
    if report is None or core is None:
        return
    if report.available is False:
        yield Problem("NO_DLA", "error", report.why, instead="device gpu")
    elif report.available is None:
        yield Problem("DLA_UNKNOWN", "warning", f"cannot tell whether there is DLA: {report.why}")
    if cores and core >= cores:
        what = f"DLA core {core} was asked for, the machine has {cores}, counted from 0"
        yield Problem("NO_SUCH_DLA_CORE", "error", what, instead=f"dla{cores - 1}")
    strict = case.wish.dla_policy == "strict"
    if report.refused_nodes:
        nodes = tuple(name for one in report.refused for name in one.nodes)
        what = "; ".join(report.placement)
        instead = "dla_policy prefer, or device gpu" if strict else "dla_policy strict refuses such a build"
        yield Problem("DLA_FALLBACK", "error" if strict else "warning", what, tuple(dict.fromkeys(nodes)), instead)


def _dla_precision(case: _Case) -> Iterator[Problem]:
    if case.wish.dla_core is None:
        return
    if case.wish.precision == "fp32":
        yield Problem("DLA_NO_FP32", "error", "a DLA computes in FP16 or INT8 only", instead="precision fp16")
    version = case.target.tensorrt
    if case.built_from == "qdq onnx" and version is not None and version < QDQ_FROM:
        what = f"the DLA of TensorRT {version_text(version)} takes no Q/DQ"
        yield Problem("DLA_NO_QDQ", "error", what, instead="calibration images with the FP32 ONNX, or device gpu")


def _memory(case: _Case) -> Iterator[Problem]:
    free, needed = case.target.memory_free_mib, case.memory.total_mib
    if free is None:
        return
    if needed > free:
        what = f"weights and activations need {needed:g} MiB at the least, {free} MiB of GPU memory are free"
        yield Problem(
            "NOT_ENOUGH_MEMORY", "error", what, (case.memory.largest_node,), "a smaller input or batch, or fp16"
        )
    elif needed + case.wish.workspace > free:
        what = f"with a workspace of {case.wish.workspace} MiB, {free} MiB of free GPU memory may not do"
        left = max(int(free - needed), 1)
        yield Problem("WORKSPACE_OVER_FREE", "warning", what, instead=f"workspace_mib {left} or less")


_CHECKS: tuple[Callable[[_Case], Iterator[Problem]], ...] = (
    _machine,
    _release,
    _profile,
    _from_lint,
    _int8,
    _types,
    _inputs,
    _dla,
    _dla_precision,
    _memory,
)
