"""Why a comparison failed, in words, and where to look: S4's guide (E-2, E-11), by the pattern of the two answers.

Kernel parity passes and pipeline parity fails: the networks are one, the images are prepared differently. Kernel parity
fails: the networks differ, and until that is mended the pipeline's answer says nothing of the preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from decimal import ROUND_CEILING, Decimal

from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.request import Limits
from app.toolkit.verification.result import Comparison, Gate

WITHIN_REACH = 10.0
"""So many times its limit a figure may be and still be a matter of tolerance; beyond that something is broken."""

CAUSES_OF_FIELDS = {
    "resize": "one side fills with grey, crops or stretches where the other does not (letterbox, centre crop, resize)",
    "channel_order": "one side feeds RGB and the other BGR",
    "mean": "the normalisation differs: another mean is subtracted",
    "std": "the normalisation differs: another std divides",
    "crop_pct": "the centre crop keeps another share of the image",
    "interpolation": "the images are resized by another interpolation",
}

CAUSES_OF_GRAPHS = (
    "an operator that the exporter or the runtime computes otherwise: kernel_parity.outputs says which output moved",
    "an operator that opset 17 lacks: stay with 17 where it works, else try opset 18 and a newer ONNX Runtime",
    "the network was not exported as it predicts: call model.eval().float() before the export (dropout, half weights)",
    "batch-norm statistics that are not the checkpoint's: export after the last update, and from the EMA if it is used",
    "another checkpoint: the weights of the two files are not of one training state",
    "axes fixed while tracing: export with dynamic_axes, at the input size that is compared",
)

CAUSES_OF_DTYPES = {
    "fp16": "FP16 rounding: S4 relaxes mse_mean to 5e-4 and top1_mismatch_rate to 0.02; keep sensitive layers in FP32",
    "int8": "INT8 quantisation: calibrate on more images of the real kind, exclude the head's nodes, or quantise fewer "
    "layers",
}


def reasons(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each limit that is not kept or not decided; the same one of both answers is said once."""
    found: dict[str, list[str]] = {}
    for comparison in comparisons:
        for gate in comparison.gates:
            if gate.verdict != "passed":
                found.setdefault(_sentence(gate), []).append(comparison.name)
    return [f"{' and '.join(names)}: {sentence}" for sentence, names in found.items()]


def failure_text(comparisons: Sequence[Comparison]) -> str:
    """The reasons in one line; "" where everything passed."""
    return "; ".join(reasons(comparisons))


def _sentence(gate: Gate) -> str:
    if gate.verdict == "undecided":
        return f"{gate.sentence()}, undecided" + (f", would have {gate.leans}" if gate.leans else "")
    return gate.sentence()


def advice(facts: ReportFacts) -> list[str]:
    """What to look at, the likeliest first; empty where everything passed."""
    if facts.verdict == "passed":
        return []
    return list(dict.fromkeys((*_causes(facts), *_undecided(facts), *_tolerances(facts), *_providers(facts))))


def _causes(facts: ReportFacts) -> Iterator[str]:
    kernel, pipeline = facts.kernel.verdict == "failed", facts.pipeline.verdict == "failed"
    if any(comparison.figures.non_finite for comparison in facts.comparisons):
        yield from _not_finite(facts)
    if kernel:
        yield "the same tensors give different answers, so the networks differ; likely causes:"
        yield from _of_graphs(facts)
        if pipeline and facts.preprocessing_differences:
            yield "the preprocessing differs too, which is to be looked at when the networks agree:"
            yield from _of_preprocessing(facts)
        if not pipeline:
            yield "each passes on its own preprocessing: one of the graphs may hold the normalisation inside"
    elif pipeline:
        yield "the same tensors give the same answers, so the networks agree and the preprocessing does not:"
        yield from _of_preprocessing(facts)


def _of_graphs(facts: ReportFacts) -> Iterator[str]:
    if facts.candidate.dtype in CAUSES_OF_DTYPES:
        yield CAUSES_OF_DTYPES[facts.candidate.dtype]
    if any(name.startswith("Tensorrt") for name in facts.candidate.providers):
        yield "ONNX Runtime's TensorRT provider computes in FP16 by its options: compare without it"
    yield from CAUSES_OF_GRAPHS


def _of_preprocessing(facts: ReportFacts) -> Iterator[str]:
    differences = facts.preprocessing_differences
    for one in differences:
        cause = CAUSES_OF_FIELDS.get(one["field"], "the two sides differ in it")
        yield f"{one['field']}: {one['reference']} in the reference, {one['candidate']} in the candidate; {cause}"
    if not differences:
        yield "both files name the same steps: check the input size, and what is really deployed (normalisation, crop)"


def _not_finite(facts: ReportFacts) -> Iterator[str]:
    yield "answers hold NaN or infinity, which no limit allows"
    if facts.candidate.dtype == "fp16":
        yield "FP16 ends at 65504: a layer overflows; keep it in FP32, or export in FP32"
    else:
        yield "look for a division by zero, a logarithm or square root of a negative number, and weights that are NaN"


def _undecided(facts: ReportFacts) -> Iterator[str]:
    if any(gate.verdict == "undecided" for comparison in facts.comparisons for gate in comparison.gates):
        yield (
            f"{facts.sampled_images} images leave a limit undecided at confidence {facts.sampling.confidence:g}: "
            "give more images, raise max_total, or ask for less confidence"
        )


def _tolerances(facts: ReportFacts) -> Iterator[str]:
    """S4's "the tolerance may be raised, e.g. to 1e-5", where the figure is near enough for that."""
    for comparison in facts.comparisons:
        for gate in comparison.gates:
            parameter = parameter_of(gate.name)
            if gate.verdict != "failed" or parameter is None or gate.measured is None:
                continue
            if gate.measured <= WITHIN_REACH * gate.limit:
                looser = f"from {gate.limit:g} to e.g. {_rounded_up(gate.measured):g}"
                yield f"if the task allows it, raise {parameter} {looser} ({gate.name} is {gate.measured:.3g})"
            else:
                yield f"{gate.name} is over {WITHIN_REACH:g} times its limit: that is a fault, not a tolerance"


def _rounded_up(value: float) -> float:
    """To one significant digit: 7.4e-6 becomes 8e-6."""
    unit = Decimal(1).scaleb(Decimal(value).adjusted())
    return float((Decimal(value) / unit).to_integral_value(ROUND_CEILING) * unit)


def parameter_of(gate: str) -> str | None:
    """The request's parameter that holds a gate's limit; None for what has none (values that are not finite)."""
    if gate.startswith("kernel_"):
        return "kernel_limits"
    named = [one.name for one in fields(Limits) if gate.startswith(one.name)]
    return named[0] if named else "map_delta" if gate.startswith("map") else None


def _providers(facts: ReportFacts) -> Iterator[str]:
    for side in (facts.reference, facts.candidate):
        for name, reason in side.providers_refused.items():
            instead = ", ".join(side.providers) or side.runtime
            yield (
                f"{name} refused ({reason}), {instead} ran instead: see nvidia-smi and the driver; "
                "ONNX Runtime's CUDA provider comes with onnxruntime-gpu"
            )
