"""How a comparison opens its two models, what it notes of that, and raw answers against their limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.parity import Difference, InputParity, ParityLimits
from app.toolkit.pipeline import ExportResult
from app.toolkit.runtimes.ort_runtime import CPU, TENSORRT, OrtRuntime
from app.toolkit.verification.gates import parity_gates
from app.toolkit.verification.request import VerifyRequest
from app.toolkit.verification.subject import dtype_of_header, open_subjects
from tests.toolkit.small_graphs import mean_reader


@pytest.mark.skipif(TENSORRT in ort.get_available_providers(), reason="this build of ONNX Runtime has TensorRT")
def test_tensorrt_is_asked_of_the_candidate_alone_and_its_refusal_is_noted(
    exported: ExportResult, tmp_path: Path
) -> None:
    copied = tmp_path / "candidate.onnx"
    shutil.copy(exported.path, copied)
    request = VerifyRequest(exported.path, copied, tmp_path, tmp_path, tensorrt_provider=True)
    reference, candidate, _, notes = open_subjects(request)
    assert isinstance(reference.runtime, OrtRuntime) and isinstance(candidate.runtime, OrtRuntime)
    assert TENSORRT not in reference.runtime.refused and TENSORRT in candidate.runtime.refused
    assert any(note.startswith(f"candidate.onnx ran on {CPU} without TensorRT: ") for note in notes)


def test_what_the_runtime_cannot_do_with_an_image_is_an_error_of_ours(tmp_path: Path) -> None:
    graph = mean_reader(np.ones((3, 5)), shape=(1, 7), axes=("n", 3, 64, 64))  # five values are no seven
    (tmp_path / "broken.onnx").write_bytes(graph.SerializeToString())
    path = tmp_path / "broken.onnx"
    reference, *_ = open_subjects(VerifyRequest(path, path, tmp_path, tmp_path))
    refused = pytest.raises(RuntimeUnavailable, match=r"broken.onnx on an input \[1, 3, 64, 64\] failed")
    with reference.runtime, refused as raised:
        reference.answer(np.zeros((1, 3, 64, 64), np.float32))
    assert "Reshape" in raised.value.received


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [("{'batch': 1, 'half': True}", "fp16"), ("{'half': False, 'int8': True}", "int8"), ("{'half': False}", "fp32")],
)
def test_an_engine_without_a_manifest_says_its_dtype_in_its_header(arguments: str, dtype: str) -> None:
    assert dtype_of_header({"args": arguments}) == dtype
    assert dtype_of_header({}) == "fp32"


def test_a_limit_of_zero_passes_equal_answers_only() -> None:
    limits = ParityLimits(boxes_px=0.0, scores=0.0, values=0.0)

    def verdicts(*differences: float) -> dict[str, str]:
        inputs = [_input(difference) for difference in differences]
        return {gate.name: gate.verdict for gate in parity_gates(inputs, {"boxes": "px"}, limits)}

    assert verdicts(0.0, 0.0)["kernel_boxes"] == "passed"
    assert verdicts(0.0, 1e-9, 0.0)["kernel_boxes"] == "failed"


def _input(difference: float) -> InputParity:
    measured = Difference(difference, difference, difference**2, None, 100.0, 0)
    return InputParity("image", "image", {"out": measured}, {"boxes": measured})
