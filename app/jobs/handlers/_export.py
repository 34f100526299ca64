"""What the two ONNX export handlers share: from the request's words to the toolkit's."""

from __future__ import annotations

from pathlib import Path

from app.jobs.context import JobContext
from app.jobs.handlers._parity import parity_limits
from app.schemas.kinds._export import ExportMetrics, ExportParameters
from app.toolkit.images import DEFAULT_IMAGES, list_images, sample_images
from app.toolkit.pipeline import PHASES, Precision, export_and_prove
from app.toolkit.stats import stats_text

DEFAULT_SAMPLE = 8
"""Images of the request's own set that a proof takes where the request does not say."""

COMPUTED = 0.9
"""The part of a job's progress that is behind it when the file is proven; storing it is the rest."""


def run_export(parameters: ExportParameters, context: JobContext, precision: Precision) -> ExportMetrics:
    options = context.options

    def progress(phase: str, fraction: float) -> None:
        context.phase(phase, COMPUTED * (PHASES.index(phase) + fraction) / len(PHASES))

    result = export_and_prove(
        context.input("input_path"),
        context.output,
        precision=precision,
        input_size=parameters.input_size,
        batch_size=parameters.batch_size,
        channels=parameters.channels,
        opset=parameters.opset or options["opset"],
        dynamic=parameters.dynamic,
        images=_images(context),
        limits=parity_limits(context, precision),
        threads=context.threads,
        trusted=options["trust_checkpoints"],
        num_queries=parameters.num_queries,
        progress=progress,
    )
    text = stats_text(result.model_stats)
    context.output.with_name(f"{context.output.stem}_stats.txt").write_text(text, encoding="utf-8")
    return ExportMetrics(
        stats=result.stats,
        parity=result.parity,
        onnx={
            "opset": result.opset,
            "precision": result.precision,
            "inputs": [spec.as_dict() for spec in result.inputs],
            "outputs": [spec.as_dict() for spec in result.outputs],
            "phase_seconds": result.seconds,
        },
    )


def _images(context: JobContext) -> list[Path]:
    given = context.images("data")
    if given is None:
        return list(DEFAULT_IMAGES)
    folder, sample = given
    return sample_images(list_images(folder), sample or DEFAULT_SAMPLE)
