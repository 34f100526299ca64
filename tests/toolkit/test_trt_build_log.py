"""Lines of trtexec and libnvinfer, as sources and users' logs have them, and what is read from them."""

from __future__ import annotations

import json

from app.toolkit.tensorrt.build_log import PHASES, BuildLog, BuildLogReader, read_log

AT = "[11/20/2026-12:00:00]"

PLACED_8 = f"""\
{AT} [W] [TRT] /model.9/Concat: DLA only supports concatenation on the C dimension.
{AT} [W] [TRT] Layer '/model.9/Concat' (CONCATENATION): Unsupported on DLA. Switching this layer's device type to GPU.
{AT} [W] [TRT] Splitting DLA subgraph at: /model.4/Conv because DLA validation failed for this layer.
{AT} [W] [TRT] DLA cores do not support POW for this operation
{AT} [I] [TRT] ---------- Layers Running on DLA ----------
{AT} [I] [TRT] [DlaLayer] {{ForeignNode[/model.0/conv/Conv.../model.3/act/Mul]}}
{AT} [I] [TRT] [DlaLayer] {{ForeignNode[/model.5/conv/Conv.../model.8/act/Mul]}}
{AT} [I] [TRT] ---------- Layers Running on GPU ----------
{AT} [I] [TRT] [GpuLayer] COPY: /model.4/Conv
{AT} [I] [TRT] [GpuLayer] POOLING: /pool/GlobalAveragePool
"""
PLACED_OTHERWISE = f"""\
{AT} [W] [TRT] Default DLA is enabled but layer Concat_5 is not supported on DLA, falling back to GPU.
{AT} [W] [TRT] Validation failed for DLA layer: Conv_7. Switching to GPU fallback.
{AT} [W] [TRT] DLA supports only 16 subgraphs per DLA core. Switching to GPU for layer Conv_9
"""
REFUSED_BLOCK = f"""\
{AT} [E] [TRT] ModelImporter.cpp:771: While parsing node number 417 [QuantizeLinear -> "/model.9/Quant_output_0"]:
{AT} [E] [TRT] ModelImporter.cpp:772: --- Begin node ---
{AT} [E] [TRT] ModelImporter.cpp:773: input: "model.9.cv2.conv.weight"
output: "/model.9/Quant_output_0"
name: "/model.9/Quant"
op_type: "QuantizeLinear"
attribute {{
  name: "axis"
  i: 0
  type: INT
}}

{AT} [E] [TRT] ModelImporter.cpp:774: --- End node ---
{AT} [E] [TRT] ModelImporter.cpp:777: ERROR: builtin_op_importers.cpp:1162 In function QuantDequantLinearHelper:
[6] Assertion failed: shiftIsAllZeros(zeroPoint) && \
"TRT only supports symmetric quantization - zeroPt must be all zeros"
{AT} [E] Failed to parse onnx file
"""
REFUSED_LINES = f"""\
{AT} [E] [TRT] In node 3 with name: /attend and operator: Attend (parseNode): UNSUPPORTED_NODE: Attend is not known
{AT} [E] [TRT] In node 669 (parseGraph): UNSUPPORTED_NODE: No importer registered for op: NonZero
"""
SUMMARY = f"""\
{AT} [I] === Performance summary ===
{AT} [I] Throughput: 85.66 qps
{AT} [I] Latency: min = 11.2 ms, max = 2e+01 ms, mean = 11.5 ms, median = 11.4 ms, percentile(90%) = 12 ms, \
percentile(95%) = 12.5 ms, percentile(99%) = 13 ms
{AT} [I] H2D Latency: min = 0.1 ms, max = 0.2 ms, mean = 0.15 ms, median = 0.14 ms, percentile(99%) = 0.2 ms
{AT} [I] GPU Compute Time: min = 11 ms, max = 12 ms, mean = 11.3 ms, median = 11.2 ms, percentile(99.9%) = 12 ms
{AT} [I] Total Host Walltime: 3.0 s
{AT} [I] Total GPU Compute Time: 2.9 s
{AT} [W] * GPU compute time is unstable, with coefficient of variance = 3.1%.
"""


def test_a_message_that_begins_with_a_rank_is_told_by_its_severity() -> None:
    log = read_log(f"{AT} [W] one\n{AT} [E] [TRT] two\n{AT} [F] three\n{AT} [I] four\nfive")
    assert (log.warnings, log.errors) == (("one",), ("two", "three"))


def test_the_banner_of_each_kind() -> None:
    command = "# trtexec --onnx=m.onnx"
    old = read_log(f"&&&& RUNNING TensorRT.trtexec [TensorRT v8502] {command}\n")
    assert (old.version, old.build, old.passed, old.failed) == ((8, 5, 2), "", False, False)
    new = read_log(f"&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b72] {command}\n")
    assert (new.version, new.build, new.passed, new.failed) == ((10, 16, 0), "72", True, False)
    assert read_log(f"&&&& FAILED TensorRT.trtexec [TensorRT v8203] {command}").failed


def test_the_phases_of_old_and_new_releases() -> None:
    for start, end in (("network model", "Finish parsing"), ("network model.", "Finished parsing")):
        begun: list[str] = []
        reader = BuildLogReader(begun.append)
        for text in (f"Start parsing {start}", f"{end} network model. Parse time: 0.03", "Engine built in 10.72 sec."):
            reader.feed(f"{AT} [I] {text}")
        assert begun == list(PHASES[1:])
        assert reader.log().phase == "save"


def test_numbers_of_the_build() -> None:
    lines = [
        "Finished parsing network model. Parse time: 0.0321",
        "Engine built in 10.7204 sec.",
        "Created engine with size: 101.811 MiB",
        "[TRT] Engine generation completed in 10.6392 seconds.",
        "[TRT] Total Host Persistent Memory: 353104 bytes",
        "[TRT] Total Device Persistent Memory: 6656",
        "[TRT] Max Scratch Memory: 1024 bytes",
        "[TRT] Total Activation Memory: 8228864",
        "[TRT] Total Weights Memory: 103529216",
        "[TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 9 MiB, GPU 105 MiB",
        "Loaded 2048 bytes of timing cache from /cache/t",
        "Saved 4096 bytes of timing cache to /cache/t",
        "Device Global Memory: 30536 MiB",
        "SMs: 16",
    ]
    assert read_log("\n".join(f"{AT} [I] {line}" for line in lines)).numbers == {
        "parse_seconds": 0.0321,
        "build_seconds": 10.7204,
        "engine_mib": 101.811,
        "generation_seconds": 10.6392,
        "host_persistent_bytes": 353104,
        "device_persistent_bytes": 6656,
        "scratch_bytes": 1024,
        "activation_bytes": 8228864,
        "weights_bytes": 103529216,
        "peak_cpu_mib": 9,
        "peak_gpu_mib": 105,
        "timing_cache_loaded_bytes": 2048,
        "timing_cache_saved_bytes": 4096,
        "device_memory_mib": 30536,
        "multiprocessors": 16,
    }


def test_tactics_that_did_not_fit_are_counted() -> None:
    log = read_log(
        f"{AT} [W] [TRT] Tactic Device request: 448MB Available: 425MB. Device memory is insufficient to use tactic.\n"
        f"{AT} [W] [TRT] Skipping tactic 3 due to insuficient memory on requested size of 448 detected for tactic 4.\n"
        "Try decreasing the workspace size with IBuilderConfig::setMaxWorkspaceSize().\n"
        f"{AT} [W] [TRT] UNSUPPORTED_STATE: Skipping tactic 0 due to insufficient memory on requested size of 516\n"
        f"{AT} [I] [TRT] Some tactics do not have sufficient workspace memory to run. Increasing workspace size will\n"
    )
    assert (log.tactics_skipped, log.workspace_short, log.out_of_memory) == (2, True, "")


def test_layers_are_placed_by_the_builders_lists() -> None:
    placement = read_log(PLACED_8).placement
    assert placement.source == "lists"
    assert placement.dla_subgraphs == len(placement.dla_layers) == 2
    assert placement.gpu_layers == ("COPY: /model.4/Conv", "POOLING: /pool/GlobalAveragePool")
    document = placement.as_dict()
    assert (document["dla_count"], document["gpu_count"], document["dla_pct"]) == (2, 2, 50.0)
    assert document["most_transitions"] == 4
    assert [vars(one) for one in placement.reasons] == [
        {"layer": "/model.9/Concat", "why": "DLA only supports concatenation on the C dimension."},
        {"layer": "/model.9/Concat", "why": "CONCATENATION"},
        {"layer": "/model.4/Conv", "why": "DLA validation failed"},
        {"layer": "", "why": "DLA cores do not support POW for this operation"},
    ]


def test_without_lists_the_layers_that_moved_are_counted() -> None:
    placement = read_log(PLACED_OTHERWISE).placement
    assert (placement.source, placement.dla_layers) == ("warnings", ())
    assert placement.gpu_layers == ("Concat_5", "Conv_7", "Conv_9")
    document = placement.as_dict()
    assert (document["dla_count"], document["dla_pct"], document["most_transitions"]) == (None, None, None)
    assert read_log("").placement.source == "none"


def test_empty_lists_are_no_placement() -> None:
    lines = [f"{AT} [I] [TRT] ---------- Layers Running on {place} ----------" for place in ("DLA", "GPU")]
    assert read_log("\n".join(lines)).placement.source == "none"


def test_a_refused_node_is_read_from_its_block() -> None:
    (node,) = read_log(REFUSED_BLOCK).node_errors
    assert (node.number, node.op, node.name) == (417, "QuantizeLinear", "/model.9/Quant")
    assert node.reason.endswith('zeroPt must be all zeros"')
    assert node.label == "/model.9/Quant (QuantizeLinear)"
    assert not node.unsupported


def test_refused_nodes_are_read_from_single_lines() -> None:
    named, bare = read_log(REFUSED_LINES).node_errors
    assert (named.number, named.op, named.name, named.unsupported) == (3, "Attend", "/attend", True)
    assert (bare.number, bare.op, bare.label, bare.unsupported) == (669, "NonZero", "node 669 (NonZero)", True)


def test_an_operator_that_a_plugin_takes_is_no_error() -> None:
    log = read_log(
        f"{AT} [I] [TRT] No importer registered for op: mySelu. Attempting to import as plugin.\n"
        f"{AT} [I] [TRT] Successfully created plugin: mySelu\n"
    )
    assert log.node_errors == ()


def test_the_performance_summary() -> None:
    performance = read_log(SUMMARY).performance
    assert performance is not None
    told = performance.as_dict()
    assert told["throughput_qps"] == 85.66
    assert told["latency_ms"] == {
        "min": 11.2,
        "max": 20.0,
        "mean": 11.5,
        "median": 11.4,
        "p90": 12,
        "p95": 12.5,
        "p99": 13,
    }
    assert told["gpu_compute_ms"]["p99.9"] == 12
    assert (told["host_walltime_s"], told["gpu_compute_s"], told["unstable_pct"]) == (3.0, 2.9, 3.1)
    assert "enqueue_ms" not in told


def test_the_help_says_that_the_options_were_refused() -> None:
    assert read_log("=== Model Options ===\n  --fp16\n").option_refused
    assert not read_log(f"{AT} [I] === Model Options ===\n").option_refused


def test_endless_warnings_are_not_all_kept() -> None:
    log = read_log("\n".join(f"{AT} [W] number {number}" for number in range(10_000)))
    assert len(log.warnings) == 200


def test_everything_goes_into_json() -> None:
    text = PLACED_8 + REFUSED_BLOCK + REFUSED_LINES + SUMMARY
    log: BuildLog = read_log(text)
    assert json.loads(json.dumps(log.as_dict()))["placement"]["gpu_count"] == 2
