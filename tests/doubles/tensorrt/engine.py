"""Behaviour of the classes that read an engine and run it."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.doubles.tensorrt.builder import kept, of_class
from tests.doubles.tensorrt.scene import Terminated

HEADER_BYTES = 28
DTYPES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(bfloat16)": "BF16",
    "tensor(int8)": "INT8",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
}
NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


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
        described, _, onnx = serialized_engine[HEADER_BYTES:].partition(b"\n")
        content = json.loads(described)
        if content["version"] != self.scene.release:
            raise Terminated("SIGSEGV: an engine of another TensorRT")
        if self.scene.scenario == "not_loaded":
            text = "Error Code 4: Internal Error (Engine deserialization failed.)"
            return self.scene.log(self.own.logger, "ERROR", f"4: [runtime.cpp::deserializeCudaEngine::50] {text}")
        self.scene.log(self.own.logger, "WARNING", "Using default stream in enqueueV3().")
        self.scene.build = vars(self.own)
        session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        return self.scene.new(
            "ICudaEngine", **content, tensors=tensors_of(session), session=session, logger=self.own.logger
        )


def tensors_of(session: ort.InferenceSession) -> list[tuple[str, bool, list[int], str]]:
    """(name, whether it is an input, shape, TensorRT's name of its type)."""
    both = ((session.get_inputs(), True), (session.get_outputs(), False))
    return [
        (one.name, is_input, [axis if isinstance(axis, int) else -1 for axis in one.shape], DTYPES[one.type])
        for nodes, is_input in both
        for one in nodes
    ]


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
        return getattr(self.scene.module.DataType, row(self, name)[3])

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
        return getattr(self.scene.module.DataType, self.own.tensors[index][3])

    def binding_is_input(self: Any, index: int) -> bool:
        return bool(self.own.tensors[index][1])

    def get_profile_shape(self: Any, profile_index: int, binding: int) -> list[Any]:
        name, _, shape, _ = self.own.tensors[binding]
        return [self.scene.module.Dims(one) for one in self.own.profile.get(name, [shape] * 3)]

    def create_engine_inspector(self: Any) -> Any:
        return self.scene.new("EngineInspector", engine=self.own)

    def create_execution_context(self: Any) -> Any:
        if self.scene.scenario == "no_context":
            text = "Requested amount of GPU memory (8228864 bytes) could not be allocated."
            return self.scene.log(self.own.logger, "ERROR", text)
        shapes = {name: shape for name, is_input, shape, _ in self.own.tensors if is_input}
        return self.scene.new("IExecutionContext", engine=self.own, shapes=shapes)


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


class Context:
    """Runs at once and in place of a GPU: it reads and writes the addresses that it is given."""

    def set_input_shape(self: Any, name: str, shape: Any) -> bool:
        low, _, high = self.own.engine.profile.get(name, [self.own.shapes[name]] * 3)
        if not all(least <= axis <= most for least, axis, most in zip(low, shape, high, strict=True)):
            text = f"Static dimension mismatch while setting input shape for {name}."
            self.scene.log(self.own.engine.logger, "ERROR", f"IExecutionContext::setInputShape: Error Code 3: {text}")
            return False
        self.own.shapes[name] = list(shape)
        return True

    def set_binding_shape(self: Any, binding: int, shape: Any) -> bool:
        return Context.set_input_shape(self, self.own.engine.tensors[binding][0], shape)

    def get_tensor_shape(self: Any, name: str) -> Any:
        given = {**self.own.shapes, **output_shapes(self.own)}
        return self.scene.module.Dims(given[name])

    def get_binding_shape(self: Any, binding: int) -> Any:
        return Context.get_tensor_shape(self, self.own.engine.tensors[binding][0])

    def execute_v2(self: Any, bindings: list[int]) -> bool:
        if self.scene.scenario == "not_run" or any(-1 in shape for shape in self.own.shapes.values()):
            text = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
            self.scene.log(self.own.engine.logger, "ERROR", f"1: [pointWiseV2Helpers.h::launchPwgenKernel::557] {text}")
            return False
        addresses = {name: at for (name, *_), at in zip(self.own.engine.tensors, bindings, strict=True)}
        feeds = {node.name: read(self.own, node, addresses[node.name]) for node in self.own.engine.session.get_inputs()}
        for node, answer in zip(
            self.own.engine.session.get_outputs(), self.own.engine.session.run(None, feeds), strict=True
        ):
            data = np.ascontiguousarray(answer).tobytes()
            ctypes.memmove(addresses[node.name], data, len(data))
        return True


def read(context: Any, node: Any, address: int) -> Any:
    dtype, shape = np.dtype(NUMPY[DTYPES[node.type]]), context.shapes[node.name]
    data = ctypes.string_at(address, int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def output_shapes(context: Any) -> dict[str, list[int]]:
    """By a run on zeros: ONNX Runtime tells shapes in no other way. -1 while an input's shape is not known."""
    session, shapes = context.engine.session, context.shapes
    if any(-1 in shape for shape in shapes.values()):
        return {name: shape for name, is_input, shape, _ in context.engine.tensors if not is_input}
    zeros = {node.name: np.zeros(shapes[node.name], NUMPY[DTYPES[node.type]]) for node in session.get_inputs()}
    return {
        node.name: list(answer.shape)
        for node, answer in zip(session.get_outputs(), session.run(None, zeros), strict=True)
    }


ENGINE_CLASSES: dict[str, type] = {
    "EngineInspector": Inspector,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
    "Runtime": Runtime,
}
