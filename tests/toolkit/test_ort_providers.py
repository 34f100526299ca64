"""Which execution providers ONNX Runtime is given, which it takes, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.ort_runtime import CPU, CUDA, NOT_UP, TENSORRT, OrtRuntime, select_providers
from tests.toolkit.runtimes import FEEDS, onnx_bytes, ort_runtime

LISTED = ort.get_available_providers()
needs_cpu_build = pytest.mark.skipif(CUDA in LISTED, reason="this build of ONNX Runtime has CUDA")
needs_gpu_build = pytest.mark.skipif(TENSORRT not in LISTED, reason="needs onnxruntime-gpu")


def test_cuda_comes_before_the_cpu_with_the_options_of_s4() -> None:
    (cuda, options), cpu = select_providers("cuda")
    assert (cuda, cpu) == ("CUDAExecutionProvider", ("CPUExecutionProvider", {}))
    assert options == {"cudnn_conv_use_max_workspace": "1", "use_tf32": "0"}


def test_the_cpu_alone() -> None:
    assert select_providers("cpu") == [("CPUExecutionProvider", {})]


def test_without_a_word_cuda_is_asked_for_where_the_build_has_it() -> None:
    assert [name for name, _ in select_providers()] == ([CUDA, CPU] if CUDA in LISTED else [CPU])


def test_tensorrt_comes_first_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """S4 E-8's names and values."""
    assert TENSORRT not in dict(select_providers("cuda"))
    providers = select_providers("cuda", tensorrt=True, cache_dir=tmp_path)
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]
    assert dict(providers)[TENSORRT] == {
        "device_id": "0",
        "trt_max_workspace_size": "8589934592",
        "trt_max_partition_iterations": "1000",
        "trt_min_subgraph_size": "1",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
    }


def test_without_a_folder_engines_are_not_cached() -> None:
    options = dict(select_providers("cuda", tensorrt=True))[TENSORRT]
    assert options["trt_engine_cache_enable"] == "False"
    assert "trt_engine_cache_path" not in options


def test_the_options_that_took_effect_are_told() -> None:
    runtime = ort_runtime()
    assert runtime.used_providers == (CPU,)
    assert runtime.provider_options == {CPU: {}}
    assert runtime.refused == {}
    assert runtime.session_options == {
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "intra_op_num_threads": "1",
        "inter_op_num_threads": "0",
    }
    assert runtime.summary() == (
        f"onnxruntime {ort.__version__} runs on CPUExecutionProvider; graph_optimization_level=ORT_ENABLE_ALL "
        "intra_op_num_threads=1 inter_op_num_threads=0"
    )


@needs_cpu_build
def test_what_the_build_lacks_is_left_out_and_named(tmp_path: Path) -> None:
    providers = select_providers("cuda", tensorrt=True, cache_dir=tmp_path)
    with OrtRuntime(onnx_bytes(), providers=providers, threads=1) as runtime:
        assert runtime.infer(FEEDS)["sum"][0, 0] == 5
    assert runtime.providers == (TENSORRT, CUDA, CPU)
    assert runtime.used_providers == (CPU,)
    assert set(runtime.refused) == {TENSORRT, CUDA}
    assert f"without {CUDA}: this build of ONNX Runtime does not have it" in runtime.summary()


@needs_cpu_build
def test_none_of_the_asked_providers() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"none of the asked providers; expected: .*CPUExecutionProvider"):
        OrtRuntime(onnx_bytes(), providers=[CUDA])


def test_a_model_that_every_provider_refuses() -> None:
    with pytest.raises(RuntimeUnavailable, match="refused the model"):
        OrtRuntime(b"no model", providers=[name for name in LISTED if name != TENSORRT])


@needs_gpu_build
def test_a_provider_that_does_not_come_up_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    """TensorRT raises where its libraries are missing, CUDA is left out without a word."""
    providers = select_providers("cuda", tensorrt=True, cache_dir=tmp_path)
    with OrtRuntime(onnx_bytes(), providers=providers, threads=1) as runtime:
        assert np.array_equal(runtime.infer(FEEDS)["sum"], FEEDS["first"] + FEEDS["second"])
    assert set(runtime.refused) == {TENSORRT, CUDA} - set(runtime.used_providers)
    assert all(runtime.refused.values())
    assert runtime.refused.get(CUDA, NOT_UP) == NOT_UP


@needs_gpu_build
def test_a_gpu_alone_that_does_not_come_up_is_an_error() -> None:
    if CUDA in OrtRuntime(onnx_bytes(), providers=[CUDA, CPU]).used_providers:
        pytest.skip("CUDA comes up here")
    with pytest.raises(RuntimeUnavailable, match="none of the asked providers came up"):
        OrtRuntime(onnx_bytes(), providers=[CUDA])
