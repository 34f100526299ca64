"""The model of a benchmark, and the forms of it that the ways run: each is made once, and only if a way asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import ModelProto

from app.toolkit.benchmark.request import BenchmarkRequest
from app.toolkit.errors import CalibrationMissing, FeedMismatch, InvalidQueries, RuntimeUnavailable
from app.toolkit.export import onnx_from_torch
from app.toolkit.models.base import ImageModel, ModelAdapter
from app.toolkit.models.exported import ExportedModel
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx
from app.toolkit.quantization.graph import post_processing, prepared
from app.toolkit.quantization.ranges import Ranges, collect_ranges
from app.toolkit.quantization.static import Target, quantize_static
from app.toolkit.runtimes.base import TensorSpec
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.tensorrt.loading import EngineFile, read_engine
from app.toolkit.tensorrt.prepare import Images, calibration_batches
from app.toolkit.verification.subject import dtype_of

ENGINES = (".engine", ".plan")
CALIBRATION_IMAGES = 100
"""As many as S1 calibrates on."""


@dataclass
class Source:
    """A model that was opened. `model` says what its images and answers are; `input_size` is (H, W) in px.

    One of `adapter` (a `.pt`), `graph` (an `.onnx`) and `engine` is there, and says which ways there can be.
    """

    request: BenchmarkRequest
    model: ImageModel
    input_size: tuple[int, int]
    adapter: ModelAdapter | None = None
    graph: ModelProto | None = None
    engine: EngineFile | None = None
    _exported: ModelProto | None = field(default=None, repr=False)
    _ranges: Ranges | None = field(default=None, repr=False)
    _quantised: dict[Target, ModelProto] = field(default_factory=dict, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of every figure."""
        if isinstance(self.model, ExportedModel) and not self.model.described:
            return (f"{self.request.model.name} does not say how its images are prepared: as a YOLO's",)
        return ()

    @property
    def image_dtype(self) -> str:
        """NumPy's name for what the file's input takes."""
        return self.model.input.dtype if isinstance(self.model, ExportedModel) else "float32"

    @property
    def is_int8(self) -> bool:
        """Whether the file is a graph that was quantised."""
        return self.graph is not None and dtype_of(self.graph) == "int8"

    def onnx_for(self, batch_size: int, int8: Target | None = None) -> ModelProto:
        """The graph of one batch size, FP32 or as the file is; with `int8`, quantised for that target.

        A `.pt` is exported once, with free axes. Every free axis is then set to the size that is timed, as the graph of
        an application is that knows its input: ONNX Runtime folds what followed from the axes, TensorRT tunes for them.

        Raises FeedMismatch where the file's batch or size is another, NotAModel for an INT8 file that takes no image,
        CalibrationMissing, and what exporting and quantising raise.
        """
        model = self._free() if int8 is None else self._int8(int8)
        return with_batch(model, batch_size, self.input_size)

    def _free(self) -> ModelProto:
        if self.graph is not None:
            return self.graph
        if self.adapter is None:
            raise RuntimeUnavailable(
                "an engine has no ONNX graph any more", expected="a .pt or .onnx", received=self.request.model.name
            )
        if self._exported is None:
            self._exported = onnx_from_torch(self.adapter, input_size=self.input_size, dynamic=True)
        return self._exported

    def _int8(self, target: Target) -> ModelProto:
        """ONNX Runtime takes the file that was given, TensorRT rather what was calibrated for it."""
        request = self.request
        if self.is_int8:
            return self._free()
        if request.int8 is not None and (target == "onnxruntime-cpu" or request.calibration is None):
            return load_onnx(request.int8)
        if target not in self._quantised:
            graph = prepared(self._free())
            if self._ranges is None:
                self._ranges = self._calibrated(graph)
            excluded = post_processing(graph)
            self._quantised[target] = quantize_static(graph, self._ranges, target=target, exclude_nodes=excluded)
        return self._quantised[target]

    def _calibrated(self, graph: ModelProto) -> Ranges:
        request = self.request
        if request.calibration is None:
            raise CalibrationMissing(
                "INT8 needs to be told its ranges", expected="calibration images, or an INT8 file", received="neither"
            )
        batch = ExportedModel.of_onnx(graph).batch or 1
        images = Images(request.calibration, self.input_size, -(-CALIBRATION_IMAGES // batch), request.threads or 1)
        batches = calibration_batches(graph, images)
        return collect_ranges(graph, batches.stream, method="minmax", threads=request.threads)


def open_source(request: BenchmarkRequest) -> Source:
    """Open the request's model. Raises what `open_model`, `load_onnx` and `read_engine` raise, InvalidInputSize,
    InvalidQueries, and for an engine without a manifest of ours what `TrtRuntime` raises."""
    suffix = request.model.suffix.lower()
    if suffix in (*ENGINES, ".onnx") and request.num_queries is not None:
        raise InvalidQueries(
            "an exported file's queries are fixed",
            expected="a D-FINE checkpoint's folder or archive",
            received=f"{request.model.name} with num_queries {request.num_queries}",
            hint="leave num_queries out",
        )
    if suffix in ENGINES:
        return _engine_source(request)
    if suffix == ".onnx":
        graph = load_onnx(request.model)
        described = ExportedModel.of_onnx(graph)
        return Source(request, described, described.check_size(request.input_size), graph=graph)
    adapter = open_model(request.model, trusted=request.trusted, num_queries=request.num_queries)
    size = request.input_size or adapter.default_input_size
    adapter.check_input(size, adapter.channels)
    return Source(request, adapter, size, adapter=adapter)


def with_batch(model: ModelProto, batch_size: int, input_size: tuple[int, int]) -> ModelProto:
    """A copy whose image input is [batch_size, C, H, W]; `input_size` is (H, W) in px, for sides that are free.

    What is known of other shapes is inferred again. Raises FeedMismatch for a fixed batch or side of another size.
    """
    spec = ExportedModel.of_onnx(model).input
    wanted = (batch_size, spec.shape[1], *input_size)
    if wanted == spec.shape:
        return model
    check_batch(spec, batch_size)
    if any(isinstance(has, int) and has != size for has, size in zip(spec.shape[2:], input_size, strict=True)):
        raise FeedMismatch(
            "the file's input has a fixed size", expected=str(list(spec.shape[2:])), received=str(list(input_size))
        )
    fixed = ModelProto()
    fixed.CopyFrom(model)
    (image,) = (value for value in fixed.graph.input if value.name == spec.name)
    for axis, size in zip(image.type.tensor_type.shape.dim, wanted, strict=True):
        if isinstance(size, int):
            axis.dim_value = size
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred: ModelProto = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return inferred


def check_batch(spec: TensorSpec, batch_size: int) -> None:
    """Raise FeedMismatch where an input's batch is fixed at another size."""
    batch = spec.shape[0]
    if isinstance(batch, int) and batch != batch_size:
        raise FeedMismatch(
            "the file's batch is fixed",
            expected=f"batch size {batch}",
            received=f"batch size {batch_size}",
            hint="export it with a free batch",
        )


def engine_tensors(file: EngineFile) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs, as an engine's manifest of ours has them; none without."""
    if file.manifest is None:
        return (), ()
    inputs, outputs = (
        tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in entries)
        for entries in (file.manifest.inputs, file.manifest.outputs)
    )
    return inputs, outputs


def _engine_source(request: BenchmarkRequest) -> Source:
    file = read_engine(request.model)
    inputs, outputs = engine_tensors(file)
    if not inputs:  # only TensorRT can tell
        runtime = TrtRuntime(request.model, trusted=request.trusted)
        inputs, outputs = runtime.inputs, runtime.outputs
    described = ExportedModel(file.metadata, inputs, outputs)
    return Source(request, described, described.check_size(request.input_size), engine=file)
