"""A build request as calls of TensorRT's builder, each noted as one would write it: the manifest's "command"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.toolkit.errors import InvalidBuild
from app.toolkit.tensorrt.api import Api
from app.toolkit.tensorrt.errors import DlaUnavailable
from app.toolkit.tensorrt.request import BuildRequest, InputShapes

MIB = 1 << 20
FREE_AXIS = -1


@dataclass(frozen=True)
class DlaSupport:
    """What the builder says of each layer before it builds. How it fuses layers may still change the placement."""

    taken: tuple[str, ...]
    refused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {"taken_count": len(self.taken), "refused_count": len(self.refused), "refused": list(self.refused)}


class Calls:
    """The calls that were made, in order."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.made: list[str] = []

    def note(self, call: str) -> None:
        """A call that the caller makes."""
        self.made.append(call)

    def set_flag(self, config: Any, flag: str) -> None:
        """Set one of BuilderFlag's members."""
        self.note(f"config.set_flag(BuilderFlag.{flag})")
        config.set_flag(self.api.get(f"BuilderFlag.{flag}"))


def create_network(calls: Calls, builder: Any, request: BuildRequest) -> Any:
    """An empty network: with an explicit batch where that is still a choice, and bound to its types where asked.

    The members' numbers are asked for, as 1 << 0 is the one up to 10.x and the other from 11 on.
    """
    names = ["NetworkDefinitionCreationFlag.EXPLICIT_BATCH"]
    if request.strongly_typed or calls.api.dialect.strong_typing == "always":
        names.append("NetworkDefinitionCreationFlag.STRONGLY_TYPED")
    there = [name for name in names if calls.api.has(name)]
    calls.note(f"builder.create_network({' | '.join(f'1 << {name}' for name in there) or 0})")
    return builder.create_network(sum(1 << int(calls.api.get(name)) for name in there))


def configure(calls: Calls, builder: Any, config: Any, network: Any, request: BuildRequest) -> DlaSupport | None:
    """All but calibration, timing cache and progress. Raises DlaUnavailable, InvalidBuild."""
    _workspace(calls, config, request.workspace_mib)
    _precision(calls, config, request)
    if request.sparse:
        calls.set_flag(config, "SPARSE_WEIGHTS")
    _profile(calls, builder, config, network, request)
    if request.dla_core is None:
        return None
    _dla(calls, builder, config, request.dla_core, gpu_fallback=request.gpu_fallback)
    return _dla_support(config, network)


def _workspace(calls: Calls, config: Any, mib: int) -> None:
    if calls.api.has("IBuilderConfig.set_memory_pool_limit"):
        calls.note(f"config.set_memory_pool_limit(MemoryPoolType.WORKSPACE, {mib * MIB})")
        config.set_memory_pool_limit(calls.api.get("MemoryPoolType.WORKSPACE"), mib * MIB)
    else:
        calls.note(f"config.max_workspace_size = {mib * MIB}")
        config.max_workspace_size = mib * MIB


def _precision(calls: Calls, config: Any, request: BuildRequest) -> None:
    """None where the ONNX's own types are the precision: binding types and flags exclude each other."""
    if request.strongly_typed or not calls.api.dialect.precision_flags:
        return
    if request.precision == "int8":
        calls.set_flag(config, "INT8")
    if request.precision == "fp16" or request.mixed_fp16:
        calls.set_flag(config, "FP16")


def _dla(calls: Calls, builder: Any, config: Any, core: int, *, gpu_fallback: bool) -> None:
    """TensorRT itself ignores a core that is not there and, allowed to fall back, builds for the GPU alone."""
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        raise DlaUnavailable(
            f"TensorRT sees no DLA core {core} here",
            expected=f"at least {core + 1} DLA cores",
            received=f"{cores}",
            hint="build for the GPU; in a container pass the DLA's device nodes through",
        )
    calls.note("config.default_device_type = DeviceType.DLA")
    config.default_device_type = calls.api.get("DeviceType.DLA")
    calls.note(f"config.DLA_core = {core}")
    config.DLA_core = core
    if gpu_fallback:
        calls.set_flag(config, "GPU_FALLBACK")


def _dla_support(config: Any, network: Any) -> DlaSupport:
    """Asked once precision and device are set, as the answer depends on them."""
    taken: list[str] = []
    refused: list[str] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        label = f"{layer.name} ({layer.type.name})"
        (taken if config.can_run_on_DLA(layer) else refused).append(label)
    return DlaSupport(tuple(taken), tuple(refused))


def _profile(calls: Calls, builder: Any, config: Any, network: Any, request: BuildRequest) -> None:
    _check_shapes(network, request.shapes)
    if not request.shapes:
        return
    calls.note("profile = builder.create_optimization_profile()")
    profile = builder.create_optimization_profile()
    for one in request.shapes:
        calls.note(f"profile.set_shape({one.name!r}, {one.minimum}, {one.optimum}, {one.maximum})")
        profile.set_shape(one.name, one.minimum, one.optimum, one.maximum)
    calls.note("config.add_optimization_profile(profile)")
    if config.add_optimization_profile(profile) < 0:
        raise InvalidBuild(
            "TensorRT refused the shapes", expected="shapes that the ONNX allows", received=_given(request.shapes)
        )
    if request.int8_from in {"calibrator", "calibration_cache"} and calls.api.calibrates_by_profile:
        calls.note("config.set_calibration_profile(profile)")
        config.set_calibration_profile(profile)


def input_shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    """Each input's shape by name, -1 for a free axis."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return {str(one.name): tuple(one.shape) for one in inputs}


def _check_shapes(network: Any, shapes: tuple[InputShapes, ...]) -> None:
    """The builder would take shapes of a static input for granted and report a missing one only in passing."""
    inputs = input_shapes_of(network)
    free = {name for name, shape in inputs.items() if FREE_AXIS in shape}
    wrong = [one.name for one in shapes if one.name not in free or not _fits(one, inputs[one.name])]
    if wrong or free - {one.name for one in shapes}:
        raise InvalidBuild(
            "the shapes do not fit the ONNX",
            expected=f"shapes for {', '.join(f'{name} {list(inputs[name])}' for name in sorted(free))}"
            if free
            else "no shapes",
            received=_given(shapes),
            hint="a static ONNX takes no shapes, a dynamic one takes them for each dynamic input",
        )


def _fits(one: InputShapes, shape: tuple[int, ...]) -> bool:
    """Of one rank, and alike on every axis that is not free."""
    return all(
        len(given) == len(shape) and all(axis in (FREE_AXIS, size) for axis, size in zip(shape, given, strict=True))
        for given in (one.minimum, one.optimum, one.maximum)
    )


def _given(shapes: tuple[InputShapes, ...]) -> str:
    return ", ".join(f"{one.name} {one.minimum} to {one.maximum}" for one in shapes) or "none"
