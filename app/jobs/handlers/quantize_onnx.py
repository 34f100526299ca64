"""Runs `quantize_onnx`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.jobs.handlers._data import coco_data
from app.schemas.kinds.quantize_onnx import QuantizeMetrics, QuantizeOnnx
from app.toolkit.quantization.pipeline import PHASES, quantize
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import RaceSettings

BEGINS = dict(zip(PHASES, (0.0, 0.03, 0.1, 0.45, 0.5, 0.9, 1.0), strict=False))
"""Where in the whole job each phase begins; the last one ends at 1."""

QUICK = RaceSettings(rounds=4, calls=5)
"""Enough to tell 1.1x from 1.0x in some seconds; a benchmark job takes its time."""


def run(parameters: QuantizeOnnx, context: JobContext) -> QuantizeMetrics:
    calibration, proof = context.images("calib_dir"), context.images("data")
    labelled = context.annotations("data") is not None
    ends = dict(zip(PHASES, [*list(BEGINS.values())[1:], 1.0], strict=True))
    request = QuantizationRequest(
        source=context.input("input_path"),
        result=context.output,
        mode=parameters.mode,
        target=parameters.target,
        images=calibration[0] if calibration else None,
        method=parameters.method,
        num_samples=parameters.num_samples,
        max_batches=parameters.max_batches,
        batch_size=parameters.batch_size,
        input_size=parameters.input_size,
        exclude=parameters.exclude,
        per_channel=parameters.per_channel,
        backend=parameters.backend,
        data=coco_data(context, "data") if labelled else None,
        proof_images=proof[0] if proof and not labelled else None,
        proof_sample=proof[1] if proof else None,
        max_drop=parameters.max_drop,
        repair=parameters.repair,
        cache_dir=context.cache_dir,
        threads=context.threads,
        race=QUICK,
    )
    result = quantize(
        request, lambda name, part: context.phase(name, BEGINS[name] + (ends[name] - BEGINS[name]) * part)
    )
    return QuantizeMetrics(**result.as_dict())
