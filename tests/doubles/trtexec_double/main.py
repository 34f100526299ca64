"""One run of trtexec, from its banner to its exit code, in the order of NVIDIA's sources."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.doubles.trtexec_double.onnx_reader import Graph, Node, read_graph
from tests.doubles.trtexec_double.options import Options, Refused, parse
from tests.doubles.trtexec_double.releases import Release, Setting, release, setting

NO_DEVICE = "no CUDA-capable device is detected"
ON_DLA = {"Conv", "Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "Add", "Sub", "Mul", "Div"}
NOT_IMPORTED = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
PLUGIN = "Plugin not found, are the plugin name, version, and namespace correct?"


class Failed(Exception):
    """The run is over with exit code 1; `told`: with FAILED."""

    def __init__(self, *errors: str, told: bool = True) -> None:
        super().__init__(*errors)
        self.errors = errors
        self.told = told


def main(argv: Sequence[str]) -> int:
    called = Path(argv[0]) if "/" in argv[0] else Path.cwd() / argv[0]
    told = setting(called, os.environ)
    return Run(release(told.release), told, argv).run()


class Run:
    def __init__(self, played: Release, told: Setting, argv: Sequence[str]) -> None:
        self.release = played
        self.told = told
        self.argv = argv

    # -- lines ------------------------------------------------------------------------------------------------------
    def say(self, severity: str, text: str) -> None:
        stream = sys.stderr if severity in "WEF" else sys.stdout
        print(time.strftime(f"[%m/%d/%Y-%H:%M:%S] [{severity}] {text}"), file=stream, flush=True)

    def bare(self, text: str, *, error: bool = False) -> None:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)

    def banner(self, word: str) -> None:
        self.bare(f"&&&& {word} TensorRT.trtexec {self.release.banner} # {shlex.join(self.argv)}")

    def pause(self) -> None:
        time.sleep(self.told.pause_sec)

    def help(self) -> None:
        self.bare("=== Model Options ===")
        for flag in sorted(self.release.flags):
            self.bare(f"  {flag}")

    # -- the run ----------------------------------------------------------------------------------------------------
    def run(self) -> int:
        self.banner("RUNNING")
        arguments = list(self.argv[1:])
        if "--help" in arguments or "-h" in arguments:
            self.help()
            return 0
        try:
            self.build(arguments)
        except Refused as error:
            self.help()
            return self.failed(error.texts, told=not self.release.at_least(11, 1))
        except Failed as error:
            return self.failed(error.errors, told=error.told)
        if self.told.scenario != "no_passed":
            self.banner("PASSED")
        return 0

    def failed(self, errors: Sequence[str], *, told: bool) -> int:
        for text in errors:
            self.say("E", text)
        if told:
            self.banner("FAILED")
        return 1

    def build(self, arguments: list[str]) -> None:
        if self.told.scenario == "cuda" and self.release.name == "10.16":  # its parser asks CUDA
            self.cuda_failure(NO_DEVICE)
        options = parse(arguments, self.release, self.told.dla_cores, lambda text: self.say("W", text))
        if not options.values:
            self.help()
            return
        self.device(options)
        graph = self.parse_model(options)
        with self.timing_cache(options):
            self.check_network(options, graph)
            self.optimise(options, graph)
        self.save(options)

    def device(self, options: Options) -> None:
        self.say("I", "=== Model Options ===")
        self.say("I", f"Model: {options.get('onnx')}")
        self.say("I", "=== Build Options ===")
        self.say("I", "=== Device Information ===")
        if self.told.scenario == "cuda":
            self.cuda_failure(NO_DEVICE)
        if int(options.get("device", "0")) > 0:
            if not self.release.at_least(10):
                self.cuda_failure("invalid device ordinal")
            self.say("I", f"Cannot find device ID {options.get('device')}!")
            raise Failed(told=False)
        for line in ("Selected Device: Orin", "Compute Capability: 8.7", "SMs: 16", "Device Global Memory: 30536 MiB"):
            self.say("I", line)
        self.say("I", "")
        self.say("I", f"TensorRT version: {'.'.join(map(str, self.release.version))}")
        if "safe" in options:
            raise Failed("Safety is not supported because safety runtime library is unavailable.")
        self.say("I", "[TRT] [MemUsageChange] Init CUDA: CPU +229, GPU +0, now: CPU 301, GPU 2518 (MiB)")

    def cuda_failure(self, text: str) -> None:
        place = " at samples/common/sampleDevice.cpp:44" if self.release.at_least(10, 16) else ""
        self.bare(f"Cuda failure{place}: {text}", error=True)
        if not self.release.at_least(10):
            os.kill(os.getpid(), signal.SIGABRT)
        raise Failed(told=False)

    def parse_model(self, options: Options) -> Graph:
        later = self.release.at_least(8, 6)
        self.say("I", "Start parsing network model" + ("." if later else ""))
        self.pause()
        try:
            graph = read_graph(Path(options.get("onnx")).read_bytes())
        except (OSError, ValueError):
            self.say("E", f"[TRT] ModelImporter.cpp:688: Failed to parse ONNX model from file: {options.get('onnx')}")
            raise self.not_created("Failed to parse onnx file", "Parsing model failed") from None
        number = next((at for at, node in enumerate(graph.nodes) if node.op in NOT_IMPORTED), -1)
        if self.told.scenario == "parser_error":
            number = 0
        if number >= 0:
            self.refuse_node(number, graph.nodes[number])
            raise self.not_created("Failed to parse onnx file", "Parsing model failed")
        self.say("I", "Finished parsing network model. Parse time: 0.0321" if later else "Finish parsing network model")
        return graph

    def refuse_node(self, number: int, node: Node) -> None:
        self.say("I", f"[TRT] No importer registered for op: {node.op}. Attempting to import as plugin.")
        self.say("I", f"[TRT] Searching for plugin: {node.op}, plugin_version: 1, plugin_namespace: ")
        if not self.release.at_least(10):
            self.say("E", f"[TRT] 3: getPluginCreator could not find plugin: {node.op} version: 1")
        self.say(
            "E", f'[TRT] ModelImporter.cpp:771: While parsing node number {number} [{node.op} -> "{node.outputs[0]}"]:'
        )
        self.say("E", "[TRT] ModelImporter.cpp:772: --- Begin node ---")
        shown = [f'input: "{name}"' for name in node.inputs] + [f'output: "{name}"' for name in node.outputs]
        shown += [f'name: "{node.name}"', f'op_type: "{node.op}"', "attribute {", '  name: "axis"', "}", ""]
        self.say("E", f"[TRT] ModelImporter.cpp:773: {shown[0]}")
        for line in shown[1:]:
            self.bare(line, error=True)
        self.say("E", "[TRT] ModelImporter.cpp:774: --- End node ---")
        function = "importFallbackPluginImporter"
        self.say("E", f"[TRT] ModelImporter.cpp:777: ERROR: builtin_op_importers.cpp:5404 In function {function}:")
        self.bare(f'[8] Assertion failed: creator && "{PLUGIN}"', error=True)

    def not_created(self, *errors: str) -> Failed:
        source = "model or file." if self.release.at_least(8, 5) else "model."
        return Failed(*errors, f"Failed to create engine from {source}", "Engine set up failed")

    def check_network(self, options: Options, graph: Graph) -> None:
        shapes = options.shapes()
        dynamic = {name: shape for name, shape in graph.inputs.items() if -1 in shape}
        self.check_shapes(shapes, graph, dynamic)
        core = int(options.get("useDLACore", "-1"))
        if core >= self.told.dla_cores:
            raise self.not_set_up(f"Cannot create DLA engine, {core} not available")

    def check_shapes(
        self, shapes: dict[str, tuple[int, ...]], graph: Graph, dynamic: dict[str, tuple[int, ...]]
    ) -> None:
        for name in shapes:
            if name not in graph.inputs:
                hint = "Please make sure the input tensor names are correct."
                raise self.not_set_up(f'Cannot find input tensor with name "{name}" in the network inputs! {hint}')
        if shapes and not dynamic:
            raise self.not_set_up(
                "Static model does not take explicit shapes since the shape of inference tensors will be determined by "
                "the model itself"
            )
        for name, shape in dynamic.items():
            if name not in shapes:
                taken = "x".join(str(max(axis, 1)) for axis in shape)
                self.say(
                    "W",
                    f"Dynamic dimensions required for input: {name}, but no shapes were provided. Automatically "
                    f"overriding shape to: {taken}",
                )

    def not_set_up(self, error: str) -> Failed:
        return self.not_created(error, "Network And Config setup failed", "Building engine failed")

    # -- the build itself -------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def timing_cache(self, options: Options) -> Iterator[None]:
        """From 8.5 on under a lock while it is read and while it is written, not in between."""
        path = Path(options.get("timingCacheFile"))
        if "timingCacheFile" not in options:
            yield
            return
        with self.lock(path):
            known = path.read_bytes() if path.is_file() else b""
        if known:
            self.say("I", f"Loaded {len(known)} bytes of timing cache from {path}")
        else:
            text = f"Could not read timing cache from: {path}. A new timing cache will be generated and written."
            self.say("I", text)
        yield
        with self.lock(path):
            known = path.read_bytes() if path.is_file() else b""
            path.write_bytes(known + f"{os.getpid()}\n".encode())
            size = path.stat().st_size
        self.say("I", f"Saved {size} bytes of timing cache to {path}")

    @contextlib.contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        if not self.release.at_least(8, 5):
            yield
            return
        with open(f"{path}.lock", "w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def optimise(self, options: Options, graph: Graph) -> None:
        if "timingCacheFile" not in options:
            text = "Local timing cache in use. Profiling results in this builder pass will not be stored."
            self.say("I", f"[TRT] {text}")
        self.placement(graph, dla="useDLACore" in options)
        self.pause()
        scenes: dict[str, Callable[[], None]] = {
            "out_of_memory": self.out_of_memory,
            "workspace_short": self.workspace_short,
            "create_failed": lambda: None,
            "killed": lambda: self.die(options, signal.SIGKILL),
            "crash": lambda: self.die(options, signal.SIGSEGV),
            "hang": lambda: time.sleep(3600),
            "stubborn": self.stubborn,
        }
        if self.told.scenario in scenes:
            scenes[self.told.scenario]()
            raise self.not_created("Engine could not be created from network", "Building engine failed")
        self.say(
            "W", "[TRT] Tactic Device request: 541MB Available: 201MB. Device memory is insufficient to use tactic."
        )
        skipped = "Skipping tactic 3 due to insufficient memory on requested size of 541 detected for tactic 0x0004."
        self.say("W", f"[TRT] {skipped}")
        self.bare("Try decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit().", error=True)
        self.say("I", "[TRT] Total Host Persistent Memory: 353104")
        self.say("I", "[TRT] Total Activation Memory: 8228864")
        text = "Peak memory usage of TRT CPU/GPU memory allocators: CPU 9 MiB, GPU 105 MiB"
        self.say("I", f"[TRT] [MemUsageStats] {text}")

    def placement(self, graph: Graph, *, dla: bool) -> None:
        """8.x prints both lists for every build."""
        on_dla = [node for node in graph.nodes if dla and node.op in ON_DLA]
        on_gpu = [node for node in graph.nodes if node not in on_dla]
        for node in on_gpu if dla else ():
            what = f"Layer '{node.name}' ({node.op.upper()}): Unsupported on DLA."
            self.say("W", f"[TRT] {what} Switching this layer's device type to GPU.")
        if self.release.at_least(10):
            return
        self.say("I", "[TRT] ---------- Layers Running on DLA ----------")
        if on_dla:
            self.say("I", f"[TRT] [DlaLayer] {{ForeignNode[{on_dla[0].name}...{on_dla[-1].name}]}}")
        self.say("I", "[TRT] ---------- Layers Running on GPU ----------")
        for node in on_gpu:
            self.say("I", f"[TRT] [GpuLayer] {node.op.upper()}: {node.name}")

    def out_of_memory(self) -> None:
        self.say("E", "[TRT] Requested amount of GPU memory (8589934592 bytes) could not be allocated.")
        self.say("E", "[TRT] Error[2]: [builder.cpp::buildSerializedNetwork::751] Error Code 2: OutOfMemory ()")

    def workspace_short(self) -> None:
        node = "{ForeignNode[/model.0/conv/Conv.../model.22/Concat]}"
        text = f"Could not find any implementation for node {node} due to insufficient workspace."
        self.say("E", f"[TRT] 10: [optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error ({text})")

    def die(self, options: Options, number: signal.Signals) -> None:
        """In the middle of writing the engine."""
        Path(options.get("saveEngine")).write_bytes(self.plan()[:1000])
        os.kill(os.getpid(), number)

    def stubborn(self) -> None:
        """It and a child of its own wait for ever and take no SIGTERM."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["sleep", "3600"], check=False, stdout=subprocess.DEVNULL)
        time.sleep(3600)

    def plan(self) -> bytes:
        """A header as `trtexec --getPlanVersionOnly` reads it, which it does from 8.6 on; then nothing of meaning."""
        version = bytes([*self.release.version, 26]) if self.release.at_least(8, 6) else bytes(4)
        return b"ftrt" + bytes(20) + version + bytes(4096)

    def save(self, options: Options) -> None:
        engine = Path(options.get("saveEngine"))
        content = {"empty": b"", "no_plan": b"\x08\x09" + bytes(100)}.get(self.told.scenario, self.plan())
        self.say("I", "Engine built in 10.7204 sec.")
        if self.release.at_least(9):
            self.say("I", f"Created engine with size: {len(content) / 2**20:.6g} MiB")
        if "saveEngine" in options:
            engine.write_bytes(content)
        if self.release.at_least(9):
            self.say("I", "Engine loaded in 0.1 sec.")
            self.say("I", f"Loaded engine with size: {len(content) / 2**20:.6g} MiB")
        only = next((flag for flag in ("skipInference", "buildOnly") if flag in options), "")
        if only:
            word = "skipInference" if self.release.at_least(8, 6) else "buildOnly"
            self.say("I", f"Skipped inference phase since --{word} is added.")
            return
        self.say("I", "Engine deserialized in 0.10331 sec.")
        self.summary()

    def summary(self) -> None:
        ranks = (90, 95, 99) if self.release.at_least(8, 5) else (99,)
        tail = ", ".join(f"percentile({rank}%) = 1.{rank} ms" for rank in ranks)
        self.say("I", "=== Performance summary ===")
        self.say("I", "Throughput: 85.66 qps")
        for name in ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"):
            self.say("I", f"{name}: min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.4 ms, {tail}")
        self.say("I", "Total Host Walltime: 3.0 s")
        self.say("I", "Total GPU Compute Time: 2.9 s")
        self.say("W", "* GPU compute time is unstable, with coefficient of variance = 3.1%.")
