"""Behaviour of the classes that read an engine."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from tests.doubles.tensorrt.builder import kept, of_class
from tests.doubles.tensorrt.scene import Terminated

HEADER_BYTES = 28


class Runtime:
    DLA_core = kept("core")
    engine_host_code_allowed = kept("host_code")
    num_DLA_cores = property(lambda self: self.scene.dla_cores)  # noqa: N815 - TensorRT's name

    def __init__(self: Any, logger: Any) -> None:
        of_class(self.scene, logger, "ILogger")
        self.own = SimpleNamespace(logger=logger)
        if self.scene.scenario in {"no_builder", "no_cuda"}:
            text = "CUDA initialization failure with error: 35. Please check your CUDA installation."
            self.scene.log(logger, "ERROR", f"createInferRuntime: Error Code 6: API Usage Error ({text})")
        if self.scene.scenario == "no_builder":
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self: Any, serialized_engine: bytes) -> Any:
        if self.scene.scenario == "no_cuda":
            raise Terminated("SIGSEGV: a runtime without CUDA was given an engine")
        if serialized_engine[:4] != b"ftrt":
            text = "Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match"
            return self.scene.log(self.own.logger, "ERROR", f"1: [stdArchiveReader.cpp::StdArchiveReader::32] {text}")
        content = json.loads(serialized_engine[HEADER_BYTES:])
        if content["version"] != self.scene.release:
            raise Terminated("SIGSEGV: an engine of another TensorRT")
        if self.scene.scenario == "not_loaded":
            text = "Error Code 4: Internal Error (Engine deserialization failed.)"
            return self.scene.log(self.own.logger, "ERROR", f"4: [runtime.cpp::deserializeCudaEngine::50] {text}")
        self.scene.log(self.own.logger, "WARNING", "Using default stream in enqueueV3().")
        self.scene.build = vars(self.own)
        return self.scene.new("ICudaEngine", **content, tensors=tensors_of(content))


def tensors_of(content: dict[str, Any]) -> list[tuple[str, bool, list[int]]]:
    """(name, whether it is an input, shape); the only output is made up."""
    inputs = [(name, True, shape) for name, shape in content["inputs"].items()]
    batch = inputs[0][2][0]
    return [*inputs, ("output0", False, [batch, 2, 62, 62])]


class Engine:
    num_optimization_profiles = property(lambda _: 1)
    num_layers = property(lambda self: len(self.own.layers))
    num_io_tensors = property(lambda self: len(self.own.tensors))
    num_bindings = num_io_tensors
    device_memory_size = property(lambda _: 8_228_864)
    device_memory_size_v2 = device_memory_size

    def get_tensor_name(self: Any, index: int) -> str:
        return str(self.own.tensors[index][0])

    def get_tensor_shape(self: Any, name: str) -> Any:
        return self.scene.module.Dims(row(self, name)[2])

    def get_tensor_dtype(self: Any, name: str) -> Any:
        return self.scene.module.DataType.FLOAT

    def get_tensor_mode(self: Any, name: str) -> Any:
        modes = self.scene.module.TensorIOMode
        return modes.INPUT if row(self, name)[1] else modes.OUTPUT

    def get_tensor_profile_shape(self: Any, name: str, profile_index: int) -> list[Any]:
        if not row(self, name)[1]:
            raise Terminated("SIGSEGV: the profile of an output")
        shapes = self.own.profile.get(name, [row(self, name)[2]] * 3)
        return [self.scene.module.Dims(shape) for shape in shapes]

    def get_binding_name(self: Any, index: int) -> str:
        return str(self.own.tensors[index][0])

    def get_binding_shape(self: Any, index: int) -> Any:
        return self.scene.module.Dims(self.own.tensors[index][2])

    def get_binding_dtype(self: Any, index: int) -> Any:
        return self.scene.module.DataType.FLOAT

    def binding_is_input(self: Any, index: int) -> bool:
        return bool(self.own.tensors[index][1])

    def get_profile_shape(self: Any, profile_index: int, binding: int) -> list[Any]:
        name, _, shape = self.own.tensors[binding]
        return [self.scene.module.Dims(one) for one in self.own.profile.get(name, [shape] * 3)]

    def create_engine_inspector(self: Any) -> Any:
        return self.scene.new("EngineInspector", engine=self.own)


def row(engine: Any, name: str) -> Any:
    return next(one for one in engine.own.tensors if one[0] == name)


class Inspector:
    def get_engine_information(self: Any, format: Any) -> str:  # noqa: A002 - TensorRT's name
        of_class(self.scene, format, "LayerInformationFormat")
        engine = self.own.engine
        names = [name for name, *_ in engine.tensors]
        if self.scene.version < (11,):
            return json.dumps({"Layers": engine.layers, "Bindings": names})
        layers = [{"Name": name, "LayerType": "DLA" if engine.dla else "kgen"} for name in engine.layers]
        return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": name} for name in names]})


ENGINE_CLASSES: dict[str, type] = {"EngineInspector": Inspector, "ICudaEngine": Engine, "Runtime": Runtime}
