"""Runs `verify`."""

from __future__ import annotations

from typing import Any

from app.jobs.context import JobContext, JobFailed
from app.jobs.handlers._parity import parity_limits
from app.schemas.common import StrictModel
from app.schemas.kinds.verify import Verify, VerifyMetrics
from app.toolkit.detections import NmsSettings
from app.toolkit.verification.pipeline import refuse_failed, verify
from app.toolkit.verification.report import export_report, write_reports
from app.toolkit.verification.request import Device, Sampling, VerifyRequest

BEGINS = {"load": 0.0, "data": 0.05, "hardness": 0.1, "compare": 0.2}
END = 0.95
DEVICES: dict[str, Device] = {"cpu": "cpu", "gpu": "cuda"}


def run(parameters: Verify, context: JobContext) -> VerifyMetrics:
    def progress(phase: str, part: float) -> None:
        begin = BEGINS.get(phase, END)
        end = min((value for value in BEGINS.values() if value > begin), default=END)
        context.phase(phase, begin + (end - begin) * part)

    facts = verify(_request(parameters, context), progress)
    write_reports(facts, context.workdir)
    refuse_failed(facts)
    leaning = {gate.leans for one in facts.comparisons for gate in one.gates if gate.verdict == "undecided"}
    undecided = facts.verdict == "undecided"
    return VerifyMetrics(
        verdict="undecided" if undecided else "passed",
        undecided=undecided,
        leans=("failed" if "failed" in leaning else "passed") if undecided else None,
        kernel=facts.kernel.as_dict(),
        pipeline=facts.pipeline.as_dict(),
        report=export_report(facts),
    )


def _request(parameters: Verify, context: JobContext) -> VerifyRequest:
    given = context.images("data")
    if given is None:
        raise JobFailed("NO_IMAGES", "a verification needs images", expected="data")
    reference_device = parameters.reference_device or parameters.device
    return VerifyRequest(
        reference=context.input("reference_path"),
        candidate=context.input("candidate_path"),
        images=given[0],
        folder=context.workdir,
        names=(parameters.reference_path, parameters.candidate_path),
        annotations=context.annotations("data"),
        sample=given[1],
        sampling=Sampling(
            mode=parameters.mode,
            sample_count=parameters.sample_count,
            per_class_k=parameters.per_class_k,
            min_classes=parameters.min_classes,
            max_total=parameters.max_total,
            hardness_bins=parameters.hardness_bins or (),
            hard_per_bin=parameters.hard_per_bin,
            confidence=parameters.confidence,
        ),
        limits=_given(parameters.limits),
        kernel_limits=_given(parameters.kernel_limits),
        same_network=parameters.same_network,
        kernel_defaults={"fp32": parity_limits(context, "fp32"), "fp16": parity_limits(context, "fp16")},
        nms=NmsSettings(parameters.nms.conf_threshold, parameters.nms.iou_threshold, parameters.nms.max_detections),
        input_size=parameters.input_size,
        preprocessing=(_given(parameters.preprocessing.reference), _given(parameters.preprocessing.candidate)),
        devices=(DEVICES[reference_device], DEVICES[parameters.device]),
        tensorrt_provider=parameters.tensorrt_provider,
        strict=parameters.strict,
        threads=context.threads,
        trusted=context.options["trust_checkpoints"],
    )


def _given(model: StrictModel | None) -> dict[str, Any]:
    """What the request said; what it left out is the toolkit's."""
    return {} if model is None else model.model_dump(exclude_none=True)
