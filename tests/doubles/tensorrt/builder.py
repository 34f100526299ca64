"""Behaviour of the classes that build. Each class is cut down to the members that the played release has.

`self.own` is an object's state, `self.scene` the module's.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.doubles.tensorrt.scene import Terminated
from tests.doubles.trtexec_double.main import NOT_IMPORTED, ON_DLA, PLUGIN
from tests.doubles.trtexec_double.onnx_reader import Graph, Node, read_graph

FLOAT_BYTES = 4
TIMING_CACHE = b"timing cache of "


def kept(name: str) -> property:
    """A property that can be set, None until then."""

    def read(self: Any) -> Any:
        return getattr(self.own, name, None)

    def write(self: Any, value: Any) -> None:
        setattr(self.own, name, value)

    return property(read, write)


def told(name: str) -> property:
    """A property that cannot be set."""
    return property(lambda self: getattr(self.own, name))


def of_class(scene: Any, value: Any, name: str) -> None:
    """As pybind11 checks an argument."""
    if not isinstance(value, getattr(scene.module, name)):
        raise TypeError(f"incompatible function arguments. The following argument types are supported: {name}")
    if not hasattr(value, "own") and not hasattr(value, "value"):
        raise TypeError(f"tensorrt.tensorrt.{name}.__init__() must be called when overriding __init__")


class CalledBack:
    """A base class for Python to derive from."""

    def __init__(self: Any) -> None:
        self.own = SimpleNamespace()


class Builder:
    def __init__(self: Any, logger: Any) -> None:
        of_class(self.scene, logger, "ILogger")
        self.own = SimpleNamespace(logger=logger)
        if self.scene.scenario in {"no_builder", "no_cuda"}:
            text = "CUDA initialization failure with error: 35. Please check your CUDA installation."
            self.scene.log(logger, "ERROR", text)
        if self.scene.scenario == "no_builder":
            raise TypeError("pybind11::init(): factory function returned nullptr")

    num_DLA_cores = property(lambda self: self.scene.dla_cores)  # noqa: N815 - TensorRT's name

    def create_network(self: Any, flags: int = 0) -> Any:
        return self.scene.new("INetworkDefinition", flags=flags, graph=Graph({}, ()), onnx=b"")

    def create_builder_config(self: Any) -> Any:
        return self.scene.new("IBuilderConfig", flags=set(), profiles=[], pools={}, cache=None, logger=self.own.logger)

    def create_optimization_profile(self: Any) -> Any:
        return self.scene.new("IOptimizationProfile", shapes={})

    def build_serialized_network(self: Any, network: Any, config: Any) -> Any:
        of_class(self.scene, network, "INetworkDefinition")
        of_class(self.scene, config, "IBuilderConfig")
        return Work(self.scene, self.own.logger, network.own, config.own).run()


class Network:
    num_inputs = property(lambda self: len(self.own.graph.inputs))
    num_layers = property(lambda self: len(self.own.graph.nodes))

    def get_input(self: Any, index: int) -> Any:
        name = list(self.own.graph.inputs)[index]
        shape = self.scene.module.Dims(self.own.graph.inputs[name])
        return self.scene.new("ITensor", name=name, shape=shape)

    def get_layer(self: Any, index: int) -> Any:
        node = self.own.graph.nodes[index]
        kinds = {"Conv": "CONVOLUTION", "Relu": "ACTIVATION", "Softmax": "SOFTMAX"}
        kind = getattr(self.scene.module.LayerType, kinds.get(node.op, "SHUFFLE"))
        return self.scene.new("ILayer", name=node.name, type=kind, op=node.op)


class Named:
    """ITensor and ILayer."""

    name = kept("name")
    shape = kept("shape")
    type = told("type")


class Parser:
    def __init__(self: Any, network: Any, logger: Any) -> None:
        of_class(self.scene, network, "INetworkDefinition")
        of_class(self.scene, logger, "ILogger")
        self.own = SimpleNamespace(network=network.own, logger=logger, errors=[])

    num_errors = property(lambda self: len(self.own.errors))

    def get_error(self: Any, index: int) -> Any:
        return self.own.errors[index]

    def parse_from_file(self: Any, model: str) -> bool:
        if not isinstance(model, str):
            raise TypeError("parse_from_file(): incompatible function arguments")
        parsing = Parsing(self.scene, self.own)
        try:
            onnx = Path(model).read_bytes()
            graph = read_graph(onnx)
        except (OSError, ValueError):
            parsing.refuse(-1, f"Failed to parse ONNX model from file: {model}")
            return False
        self.own.network.graph, self.own.network.onnx = graph, onnx
        return parsing.parse(graph)


class Parsing:
    def __init__(self, scene: Any, parser: Any) -> None:
        self.scene, self.parser = scene, parser

    def parse(self, graph: Graph) -> bool:
        flags = self.scene.module.NetworkDefinitionCreationFlag
        if self.scene.version < (10,) and not self.parser.network.flags & 1 << int(flags.EXPLICIT_BATCH):
            self.refuse(-1, "This version of the ONNX parser only supports networks with an explicit batch dimension")
        for number, node in enumerate(graph.nodes):
            if node.op in NOT_IMPORTED:
                self.tell(number, node)
                self.refuse(number, f'Assertion failed: creator && "{PLUGIN}"', node)
        return not self.parser.errors

    def tell(self, number: int, node: Node) -> None:
        for text in (
            f'While parsing node number {number} [{node.op} -> "{node.outputs[0]}"]:',
            f'--- Begin node ---\ninput: "{node.inputs[0]}"\nname: "{node.name}"\nop_type: "{node.op}"\n',
            "--- End node ---",
            f"ERROR: builtin_op_importers.cpp:5404 In function importFallbackPluginImporter:\n[8] {PLUGIN}",
        ):
            self.scene.log(self.parser.logger, "ERROR", text)

    def refuse(self, number: int, desc: str, node: Node | None = None) -> None:
        name, op = (node.name, node.op) if node else ("", "")
        if number < 0:
            self.scene.log(self.parser.logger, "ERROR", f"ModelImporter.cpp:688: {desc}")
        self.parser.errors.append(self.scene.new("ParserError", number=number, desc=desc, name=name, op=op))


class ParserError:
    def node(self: Any) -> int:
        return int(self.own.number)

    def desc(self: Any) -> str:
        return str(self.own.desc)

    def node_name(self: Any) -> str:
        return str(self.own.name)

    def node_operator(self: Any) -> str:
        return str(self.own.op)


class Profile:
    def set_shape(self: Any, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - TensorRT's names
        self.own.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class Config:
    max_workspace_size = kept("workspace")
    default_device_type = kept("device")
    DLA_core = kept("core")
    progress_monitor = kept("monitor")
    int8_calibrator = kept("calibrator")

    def set_flag(self: Any, flag: Any) -> None:
        of_class(self.scene, flag, "BuilderFlag")
        self.own.flags.add(flag.name)

    def set_memory_pool_limit(self: Any, pool: Any, pool_size: int) -> None:
        of_class(self.scene, pool, "MemoryPoolType")
        self.own.pools[pool.name] = pool_size

    def add_optimization_profile(self: Any, profile: Any) -> int:
        of_class(self.scene, profile, "IOptimizationProfile")
        self.own.profiles.append(profile.own.shapes)
        return len(self.own.profiles) - 1

    def set_calibration_profile(self: Any, profile: Any) -> bool:
        self.own.calibration_profile = profile.own.shapes
        return True

    def can_run_on_DLA(self: Any, layer: Any) -> bool:  # noqa: N802 - TensorRT's name
        precise = bool({"FP16", "INT8"} & self.own.flags) or self.scene.version >= (11,)
        return precise and self.own.device.name == "DLA" and layer.own.op in ON_DLA

    def create_timing_cache(self: Any, serialized_timing_cache: bytes) -> Any:
        lines = bytes(serialized_timing_cache).splitlines()
        if lines and not lines[0].startswith(TIMING_CACHE):
            self.scene.log(self.own.logger, "ERROR", "The timing cache is damaged")
            return None
        made_by = lines[0] if lines else header(self.scene)
        return self.scene.new("ITimingCache", made_by=made_by, entries=lines[1:])

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        of_class(self.scene, cache, "ITimingCache")
        if self.scene.scenario == "cache_refused" or (cache.own.made_by != header(self.scene) and not ignore_mismatch):
            return False
        self.own.cache = cache
        return True

    def get_timing_cache(self: Any) -> Any:
        return self.own.cache


def header(scene: Any) -> bytes:
    return TIMING_CACHE + f"{scene.release} on Orin".encode()


class TimingCache:
    def combine(self: Any, input_cache: Any, ignore_mismatch: bool) -> bool:
        if input_cache.own.made_by != self.own.made_by and not ignore_mismatch:
            return False
        self.own.entries += [entry for entry in input_cache.own.entries if entry not in self.own.entries]
        return True

    def serialize(self: Any) -> Any:
        return self.scene.module.IHostMemory(b"".join(line + b"\n" for line in (self.own.made_by, *self.own.entries)))


class Work:
    """`build_serialized_network`: an engine, or None."""

    def __init__(self, scene: Any, logger: Any, network: Any, config: Any) -> None:
        self.scene, self.logger, self.network, self.config = scene, logger, network, config

    def run(self) -> Any:
        self.scene.build = {**vars(self.config), "network_flags": self.network.flags, "pools": dict(self.config.pools)}
        free = {name for name, shape in self.network.graph.inputs.items() if -1 in shape}
        if free and not any(free <= set(shapes) for shapes in self.config.profiles):
            text = "Network has dynamic or shape inputs, but no optimization profile has been defined."
            return self.fail(f"4: [network.cpp::validate::2965] Error Code 4: Internal Error ({text})")
        calibrated = self.calibrate() if getattr(self.config, "calibrator", None) else True
        if not calibrated:
            return self.fail("2: Calibration failure occurred with no scaling factors detected.")
        if not self.progress():
            return self.fail("Build was cancelled by the progress monitor.")
        return self.end()

    def fail(self, text: str) -> None:
        self.scene.log(self.logger, "ERROR", text)

    def end(self) -> Any:
        if self.scene.scenario == "out_of_memory":
            self.fail("Requested amount of GPU memory (8589934592 bytes) could not be allocated.")
            return self.fail("2: [builder.cpp::buildSerializedNetwork::751] Error Code 2: OutOfMemory ()")
        if self.scene.scenario == "workspace_short":
            return self.fail("10: Could not find any implementation for node /conv due to insufficient workspace.")
        if self.scene.scenario == "none":
            return None
        if self.config.cache is not None:
            self.config.cache.own.entries.append(f"kernels of {self.network.graph.nodes[0].name}".encode())
        content = b"something else" if self.scene.scenario == "no_plan" else self.plan()
        return self.scene.module.IHostMemory(content)

    # -- calibration ------------------------------------------------------------------------------------------------
    def calibrate(self) -> bool:
        calibrator, call = self.config.calibrator, self.scene.noexcept
        cache = call(calibrator.read_calibration_cache)
        if cache is not None and self.scene.scenario != "cache_refused":
            call(lambda: calibrator.write_calibration_cache(memoryview(cache)))  # not known of a real one; the worst
            return True
        names = list(self.network.graph.inputs)
        while (addresses := call(lambda: calibrator.get_batch(names))) is not None:
            self.read(addresses, call(calibrator.get_batch_size), names)
        if not self.scene.batches:
            # What a real builder does is not known to us; here it is the worst: success all the same.
            return bool(self.scene.scenario == "cache_refused")
        kind = "EntropyCalibration2" if self.entropy(calibrator) else "MinMaxCalibration"
        text = f"TRT-{''.join(map(str, self.scene.version[:3]))}-{kind}\nimages: 3c010a14\n".encode()
        call(lambda: calibrator.write_calibration_cache(memoryview(text)))
        return True

    def entropy(self, calibrator: Any) -> bool:
        return isinstance(calibrator, self.scene.module.IInt8EntropyCalibrator2)

    def read(self, addresses: Sequence[int], batch_size: int, names: Sequence[str]) -> None:
        """As the real one does, from as many addresses as there are inputs, whatever the list's length."""
        if len(addresses) < len(names):
            raise Terminated("SIGSEGV: addresses of inputs that were not given")
        shape = self.network.graph.inputs[names[0]]
        known = dict(self.config.profiles[0])[names[0]][1] if self.config.profiles else shape
        count = batch_size
        for axis in known[1:]:
            count *= axis
        data = ctypes.string_at(addresses[0], count * FLOAT_BYTES)
        self.scene.batches.append(sum(memoryview(data).cast("f")) / count)

    # -- progress ---------------------------------------------------------------------------------------------------
    def progress(self) -> bool:
        """Two nested phases; False where the monitor has ended the build."""
        monitor, call = getattr(self.config, "monitor", None), self.scene.noexcept
        if monitor is None:
            return True
        call(lambda: monitor.phase_start("Building Engine", None, 2))
        for step in range(2):
            call(lambda: monitor.phase_start("Computing profile costs", "Building Engine", 4))
            for inner in range(4):
                if not call(lambda at=inner: monitor.step_complete("Computing profile costs", at)):
                    return False
            call(lambda: monitor.phase_finish("Computing profile costs"))
            if not call(lambda at=step: monitor.step_complete("Building Engine", at)):
                return False
        call(lambda: monitor.phase_finish("Building Engine"))
        return True

    # -- the engine -------------------------------------------------------------------------------------------------
    def plan(self) -> bytes:
        """A header as `trtexec --getPlanVersionOnly` reads it; behind it what the double itself reads and runs."""
        version = bytes([*self.scene.version, 26][:4]) if self.scene.version >= (8, 6) else bytes(4)
        shapes = self.config.profiles[0] if self.config.profiles else {}
        body = {
            "version": self.scene.release,
            "inputs": self.network.graph.inputs,
            "profile": shapes,
            "layers": [node.name for node in self.network.graph.nodes],
            "dla": bool(getattr(self.config, "core", None) is not None),
        }
        head = b"ftrt" + bytes(20) + version
        return head + json.dumps(body).encode() + b"\n" + bytes(self.network.onnx)


BUILDER_CLASSES: dict[str, type] = {
    "Builder": Builder,
    "Dims": tuple,
    "IBuilderConfig": Config,
    "IHostMemory": bytes,
    "IInt8EntropyCalibrator2": CalledBack,
    "IInt8MinMaxCalibrator": CalledBack,
    "ILayer": Named,
    "ILogger": CalledBack,
    "INetworkDefinition": Network,
    "IOptimizationProfile": Profile,
    "IProgressMonitor": CalledBack,
    "ITensor": Named,
    "ITimingCache": TimingCache,
    "OnnxParser": Parser,
    "ParserError": ParserError,
}
