"""ONNX Runtime's ways: the graph as it is, and INT8 on a CPU.

On a GPU the tensors lie there before and after (IO binding), and the session computes on the stream that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
import torch

from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.result import Part
from app.toolkit.benchmark.source import Source
from app.toolkit.benchmark.timers import Feeds, GpuSteps, Timer, host_timer, side_stream
from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.ort_runtime import CUDA, CUDA_OPTIONS, OrtRuntime
from app.toolkit.verification.request import Dtype
from app.toolkit.verification.subject import dtype_of


def why_lacking(way: Way, source: Source, request: BenchmarkRequest) -> str:
    """Why a way of ONNX Runtime cannot run here; "" where it can."""
    device = request.device
    if source.engine is not None:
        return f"ONNX Runtime runs an .onnx; {request.model.name} has no graph of it any more"
    if way == "onnxruntime_int8" and device == "cuda":
        return "ONNX Runtime's CUDA provider computes a Q/DQ graph in floating point; INT8 is for the CPU"
    if way == "onnxruntime_int8" and not (request.int8 or request.calibration or source.is_int8):
        return "INT8 needs an INT8 file, or calibration images to make one from"
    if device == "cuda" and CUDA not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} here is built without CUDA; onnxruntime-gpu has it"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__}, whose events time the GPU, sees none"
    return ""


def prepared(
    way: Way, source: Source, request: BenchmarkRequest, batch_size: int
) -> tuple[Callable[[], OrtRunner], Dtype]:
    """What opens a session on the graph of this batch size, and what the graph computes in.

    Raises what `Source.onnx_for` raises, and RuntimeUnavailable for an INT8 file that is none. Opening raises
    RuntimeUnavailable where a GPU was asked for and the session went without.
    """
    int8 = way == "onnxruntime_int8"
    graph = source.onnx_for(batch_size, "onnxruntime-cpu" if int8 else None)
    dtype = dtype_of(graph)
    if int8 and dtype != "int8":
        raise RuntimeUnavailable("the file given as INT8 is not quantised", expected="int8", received=dtype)
    kind = CudaOrtRunner if request.device == "cuda" else OrtRunner
    model = graph.SerializeToString()
    return lambda: kind(model, threads=request.threads), dtype


class OrtRunner(OrtRuntime):
    """On the CPU."""

    def __init__(self, model: bytes, *, threads: int | None) -> None:
        super().__init__(model, threads=threads)
        self.notes = [f"onnxruntime {ort.__version__}, {self.session_options['intra_op_num_threads']} threads"]

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """From host array to host array."""
        return {"end_to_end": host_timer(self._run, feeds)}


class CudaOrtRunner(OrtRunner):
    """On the first GPU. The nodes that the CUDA provider lacks run on the CPU, as ONNX Runtime has it."""

    def __init__(self, model: bytes, *, threads: int | None) -> None:
        self._stream = side_stream()
        options = {**CUDA_OPTIONS, "user_compute_stream": str(self._stream.cuda_stream)}
        OrtRuntime.__init__(self, model, providers=[(CUDA, options)], threads=threads)
        self.notes = [f"onnxruntime {ort.__version__} on {', '.join(self.used_providers)}, without TF32"]

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """Computing and both copies apart, and from host array to host array."""
        assert self._session is not None  # noqa: S101 - it is open; this tells the type checker
        session, spec = self._session, self.inputs[0]
        answers = {name: torch.from_numpy(array) for name, array in self._run(feeds[0]).items()}
        images = torch.from_numpy(feeds[0][spec.name]).to("cuda")
        places = {name: torch.empty_like(answer, device="cuda") for name, answer in answers.items()}
        hosts = {name: answer.pin_memory() for name, answer in answers.items()}
        binding = session.io_binding()
        binding.bind_input(spec.name, "cuda", 0, np.dtype(spec.dtype), tuple(images.shape), images.data_ptr())
        for name, place in places.items():
            dtype = np.dtype(str(place.dtype).removeprefix("torch."))
            binding.bind_output(name, "cuda", 0, dtype, tuple(place.shape), place.data_ptr())

        unwaited = ort.RunOptions()  # the timer waits, and an event is not kept from following the last kernel
        unwaited.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def copy_in(one: Feeds) -> None:
            images.copy_(torch.from_numpy(one[spec.name]), non_blocking=True)

        def compute() -> None:
            session.run_with_iobinding(binding, unwaited)

        def copy_out() -> None:
            for name, host in hosts.items():
                host.copy_(places[name], non_blocking=True)

        return GpuSteps(self._stream, copy_in, compute, copy_out).timers(feeds)
