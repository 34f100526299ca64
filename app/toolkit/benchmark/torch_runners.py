"""PyTorch's ways: eager, `torch.compile`, and CUDA graphs of both.

What runs is the adapter's network as its family's own tools run it for inference: Ultralytics' `predict` fuses
convolutions with their normalisations, and so does the adapter's `export_module`; its head keeps the anchors of one
input size, which is what `predict` does too.

Settings, on a GPU, restored at the end:

- FP32 is FP32: TF32, which keeps 10 of 23 fraction bits, is off. torch has it on for convolutions unless it is told.
- cuDNN finds its algorithms by timing them (`torch.backends.cudnn.benchmark`), as ONNX Runtime's CUDA provider and
  TensorRT do. torch leaves that off for inputs whose shape changes; here it does not.
- Each precision has the memory layout that is the faster one for it: FP16 channels last, FP32 without TF32 channels
  first, as people run it. A slow FP32 would flatter every speed-up (`benchmarks/benchmark_by_hand.py`).

`torch.compile` runs in its default mode. `max-autotune` compiles for minutes for each batch size, and `reduce-overhead`
goes on without a CUDA graph where it cannot have one, with a warning only. So the graph is captured here, of the
compiled network as of the eager one, and a network that cannot be captured is a row that says so.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from app.toolkit.benchmark.malloc import freed_memory_kept
from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.result import Part
from app.toolkit.benchmark.source import Source
from app.toolkit.benchmark.timers import Feeds, GpuSteps, Timer, host_timer, side_stream
from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.base import Array, CheckedRuntime, TensorSpec
from app.toolkit.runtimes.failures import is_out_of_memory
from app.toolkit.verification.request import Dtype

WARM_RUNS = 3
"""On the stream of a capture, before it: libraries set themselves up in the first (torch's notes on CUDA graphs)."""
COMPILERS = {"cpu": ("CXX", "g++"), "cuda": ("CC", "gcc", "clang")}
"""By device: the variable that names a compiler, else those that torch and Triton look for."""


@dataclass(frozen=True)
class TorchWay:
    """How the network is run."""

    half: bool = False
    compiled: bool = False
    graph: bool = False

    def words(self) -> str:
        """For a sentence."""
        words = ("in FP16" if self.half else "in FP32", *(["compiled"] if self.compiled else []))
        return ", ".join((*words, *(["in a CUDA graph"] if self.graph else [])))


TORCH_WAYS: Mapping[Way, TorchWay] = {
    "torch_fp32": TorchWay(),
    "torch_fp16": TorchWay(half=True),
    "torch_compile": TorchWay(compiled=True),
    "torch_fp16_graph": TorchWay(half=True, graph=True),
    "torch_fp16_compile_graph": TorchWay(half=True, compiled=True, graph=True),
}


def why_lacking(way: Way, source: Source, request: BenchmarkRequest) -> str:
    """Why a way of PyTorch cannot run here; "" where it can."""
    how, device = TORCH_WAYS[way], request.device
    if source.adapter is None:
        return f"PyTorch runs a .pt; {request.model.name} has no network of it any more"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    if how.graph and device != "cuda":
        return "a CUDA graph needs a CUDA GPU"
    if how.half and device == "cpu" and not _convolves_in_half():
        return f"torch {torch.__version__} has no FP16 convolution for this CPU"
    return _why_not_compiled(device) if how.compiled else ""


def prepared(
    way: Way, source: Source, request: BenchmarkRequest, batch_size: int
) -> tuple[Callable[[], TorchRunner], Dtype]:
    """What makes the runner of a `.pt`'s network, and what that computes in."""
    adapter, size, how = source.adapter, source.input_size, TORCH_WAYS[way]
    assert adapter is not None  # noqa: S101 - why_lacking() has said so; this tells the type checker
    kind = CudaTorchRunner if request.device == "cuda" else TorchRunner
    module = adapter.export_module(dynamic=False)

    def make() -> TorchRunner:
        return kind(
            module,
            adapter.input_specs(size, batch_size),
            adapter.output_specs(),
            how,
            threads=request.threads or len(os.sched_getaffinity(0)),
        )

    return make, "fp16" if how.half else "fp32"


class TorchRunner(CheckedRuntime):
    """A copy of a network on the CPU, for one input shape. Its answers are float32 whatever it computes in.

    `notes` is complete once it is open. Raises RuntimeUnavailable where the network does not run this way.
    """

    device = "cpu"

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        how: TorchWay,
        *,
        threads: int,
    ) -> None:
        super().__init__("torch", inputs, outputs)
        self.notes: list[str] = []
        self._module, self._how, self._threads = module, how, threads
        self._dtype = torch.float16 if how.half else torch.float32
        first = self.device == "cuda" and not how.half
        self._layout = torch.contiguous_format if first else torch.channels_last
        self._network: Callable[[torch.Tensor], torch.Tensor | Sequence[torch.Tensor]] | None = None
        self._open_until = contextlib.ExitStack()

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """From host array to host array."""
        return {"end_to_end": host_timer(self._run, feeds)}

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop)
            stack.enter_context(settings(self.device, self._threads))
            _free(self.device)  # what a row left that ended in an error
            try:
                self._make_ready()
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self._refused(error) from error
            self._open_until = stack.pop_all()

    def _make_ready(self) -> None:
        network = copy.deepcopy(self._module).to(self.device, self._dtype).to(memory_format=self._layout)
        self._network = torch.compile(network, dynamic=False) if self._how.compiled else network
        begun = time.perf_counter()
        self._first_run()
        if self._how.compiled:
            seconds = time.perf_counter() - begun
            self.notes.append(f"torch.compile took {seconds:.1f} s, which is in none of the figures")

    def _first_run(self) -> None:
        self._forward(torch.rand(self._shape()))

    def _forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[N, C, H, W] float32 in, float32 out, on one device; the casts are part of what is computed."""
        assert self._network is not None  # noqa: S101 - it is open; this tells the type checker
        with torch.inference_mode():
            results = self._network(images.to(dtype=self._dtype, memory_format=self._layout))
            results = (results,) if isinstance(results, torch.Tensor) else results
            return [result.float().contiguous() for result in results]

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        answers = self._forward(torch.from_numpy(feeds[self.inputs[0].name]))
        return {spec.name: answer.numpy() for spec, answer in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._open_until.close()

    def _drop(self) -> None:
        """Everything that holds memory."""
        self._network = None
        if self._how.compiled:
            torch.compiler.reset()  # it gives up compiling a function of which it has eight variants
        _free(self.device)

    def _shape(self) -> tuple[int, ...]:
        return tuple(int(axis) for axis in self.inputs[0].shape)

    def _refused(self, error: Exception) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            "PyTorch cannot run the network this way",
            expected=f"one that runs {self._how.words()}",
            received=f"{type(error).__name__}: {error}".splitlines()[0],
            hint="the other ways do not depend on it",
        )


class CudaTorchRunner(TorchRunner):
    """On a GPU: images and answers have places there and in page-locked host memory, which every run uses again."""

    device = "cuda"

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """Computing and both copies apart, and from host array to host array."""
        return self._steps.timers(feeds)

    def _make_ready(self) -> None:
        self._images = torch.rand(self._shape(), device=self.device)  # not zeros: cuDNN times its algorithms on it
        self._answers: list[torch.Tensor] = []
        self._hosts: list[torch.Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = GpuSteps(side_stream(), self._copy_in, self._compute, self._copy_out)
        super()._make_ready()

    def _first_run(self) -> None:
        stream = self._steps.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_RUNS if self._how.graph else 1):
                self._compute()
        stream.synchronize()
        if self._how.graph:
            graph = torch.cuda.CUDAGraph()
            # "thread_local": what other threads ask of CUDA meanwhile, such as a meter, does not end the capture.
            capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
            with torch.inference_mode(), capture:
                self._answers = self._forward(self._images)
            self._graph = graph
        self._hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in self._answers]

    def _copy_in(self, feeds: Feeds) -> None:
        self._images.copy_(torch.from_numpy(feeds[self.inputs[0].name]), non_blocking=True)

    def _compute(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._answers = self._forward(self._images)

    def _copy_out(self) -> None:
        for host, answer in zip(self._hosts, self._answers, strict=True):
            host.copy_(answer, non_blocking=True)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        self._steps.run(feeds)
        return {spec.name: host.numpy().copy() for spec, host in zip(self.outputs, self._hosts, strict=True)}

    def _drop(self) -> None:
        self._graph = None  # before the answers, which lie in its memory
        self._answers, self._hosts = [], []
        self._images = torch.empty(0)
        super()._drop()


@contextlib.contextmanager
def settings(device: str, threads: int) -> Iterator[None]:
    """The threads, for a CPU the memory, and for a GPU what the module's docstring says; restored at the end."""
    cuda, cudnn, threads_before = torch.backends.cuda.matmul, torch.backends.cudnn, torch.get_num_threads()
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    torch.set_num_threads(threads)
    if device == "cuda":
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = False, False, True
    try:
        with contextlib.nullcontext() if device == "cuda" else freed_memory_kept():
            yield
    finally:
        torch.set_num_threads(threads_before)
        if device == "cuda":
            cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # an engine's or ONNX Runtime's allocator cannot use what torch keeps


def _convolves_in_half() -> bool:
    """Slowly where the CPU computes no FP16 itself: YOLOv8n took 3 to 7 times as long as in FP32."""
    try:
        nn.functional.conv2d(torch.zeros(1, 1, 3, 3).half(), torch.zeros(1, 1, 3, 3).half())
    except RuntimeError:  # "not implemented for 'Half'"
        return False
    return True


def _why_not_compiled(device: str) -> str:
    """torch.compile writes C++ for a CPU and Triton for a GPU, whose launchers are C; both include Python's header."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs the package triton for a GPU"
    variable, *names = COMPILERS[device]
    wanted = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in wanted):
        return f"torch.compile needs a compiler: {' or '.join(wanted)} is not on the PATH"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "torch.compile needs Python.h (the package python3-dev)"
    return ""
