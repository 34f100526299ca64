"""Two models and images in, two answers out: do they compute the same, and do they answer the same as deployed?

*Kernel parity* feeds the reference's tensors to both, *pipeline parity* feeds each what its own preprocessing makes of
the image; both read the answers by one post-processing. Where the two preprocessings are one, the second answer is the
first. Images come in groups, one model after the other: taking turns, the threads of each spin in the other's way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from app.toolkit.detections import COCO_NMS
from app.toolkit.errors import UnreadableImage
from app.toolkit.images import read_image
from app.toolkit.parity import ParityLimits
from app.toolkit.runtimes.base import Array
from app.toolkit.verification.advice import advice, failure_text
from app.toolkit.verification.comparing import Comparing, Seen
from app.toolkit.verification.data import Sample, Unreadable, VerificationData, check_size, read_data, sampled
from app.toolkit.verification.errors import InvalidVerification, VerificationFailed
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.origin import exported_at, git_sha_of, side, versions
from app.toolkit.verification.request import FP16_STATISTICS, FP32_STATISTICS, Limits, VerifyRequest
from app.toolkit.verification.result import Comparison, DetectionFigures, Figures
from app.toolkit.verification.sampling import (
    Chosen,
    add_hard,
    choose,
    hardness_of_classification,
    hardness_of_detection,
)
from app.toolkit.verification.sequential import looks
from app.toolkit.verification.subject import TASKS, Answers, Subject, open_subjects

GROUP = 16
"""Images between which the two models change: their tensors and answers are kept so long."""

LOW_MAP = 0.05
"""Of a reference by the labels: below, these are more likely wrong than the model."""

PHASES = ("load", "data", "hardness", "compare", "judge")
Progress = Callable[[str, float], None]


def verify(request: VerifyRequest, progress: Progress | None = None) -> ReportFacts:
    """Compare and judge; `report.write_reports` writes it down. `progress` hears (phase, part of that phase).

    Raises the ModelFileErrors, ModelsDiffer, InvalidInputSize, InvalidVerification, NoImages, UnreadableImage,
    InvalidAnnotations, RuntimeUnavailable. A limit that is not kept is no error here: it is the verdict.
    """
    return _Run(request, progress or _silent).run()


def refuse_failed(facts: ReportFacts) -> None:
    """Raise VerificationFailed where the verdict is one, with S4's guide to looser limits and the likely causes."""
    if not facts.failed:
        return
    undecided = facts.verdict == "undecided"
    raise VerificationFailed(
        f"{facts.candidate.path} was not shown to answer like {facts.reference.path}"
        if undecided
        else f"{facts.candidate.path} does not answer like {facts.reference.path}",
        expected="every limit kept, on the same tensors and with each one's own preprocessing",
        received=failure_text(facts.comparisons),
        hint="; ".join(advice(facts)),
    )


class _Run:
    """One verification, phase by phase, and the clock over them."""

    def __init__(self, request: VerifyRequest, progress: Progress) -> None:
        self.request = request
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.unreadable = Unreadable()
        self.unreadable_hard = Unreadable()
        self.classes: set[int] = set()
        self.decided_after: int | None = None
        self._begun = time.perf_counter()

    def run(self) -> ReportFacts:
        request = self.request
        reference, candidate, size, notes = open_subjects(request)
        self.reference, self.candidate, self.input_size = reference, candidate, size
        limits = _limits(request, candidate)
        self._ended("load")
        model = reference.model
        data = read_data(request.images, request.annotations, model.names, task=TASKS[model.head])
        data = sampled(data, request.sample)
        self._ended("data")
        kernel_limits = _kernel_limits(request, candidate)
        self.kernel = Comparing("kernel", request, reference, data, limits, kernel_limits)
        self.pipeline = self.kernel
        if reference.preprocessing != candidate.preprocessing:
            alone = request.sampling.mode == "smoke" or model.head == "raw"  # no task's limits judge these
            self.pipeline = Comparing("pipeline", request, reference, data, limits, kernel_limits if alone else None)
        with reference.runtime, candidate.runtime:
            chosen = self._chosen(data)
            kernel, pipeline = self._compare(chosen.samples)
        self._ended("compare")
        return ReportFacts(
            reference=side(reference, request, 0, size),
            candidate=side(candidate, request, 1, size),
            kernel=kernel,
            pipeline=pipeline,
            kernel_parity=self.kernel.parity_report(reference.runtime.name, candidate.runtime.name).as_dict(),
            sampling=request.sampling,
            policy=chosen.policy,
            chosen_images=len(chosen.samples),
            sampled_images=self.kernel.images,
            sampled_classes=len(self.classes),
            limits=limits,
            names=model.names,
            input_size=size,
            git_sha=git_sha_of(candidate, request),
            exported_at=exported_at(candidate, request),
            nms=request.nms if model.head == "boxes" else None,
            strict=request.strict,
            decided_after=self.decided_after,
            notes=(*notes, *data.warnings, *chosen.notes, *_doubts(kernel.figures)),
            unreadable={**self.unreadable_hard.reasons, **self.unreadable.reasons},
            seconds=self.seconds,
            versions=versions(),
        )

    def _ended(self, phase: str) -> None:
        self.seconds[phase] = round(time.perf_counter() - self._begun - sum(self.seconds.values()), 3)
        self.progress(phase, 1.0)

    def _chosen(self, data: VerificationData) -> Chosen:
        sampling = self.request.sampling
        chosen = choose(data, sampling)
        if not sampling.hardness_bins or self.reference.model.head == "raw":
            return chosen
        taken = set(chosen.samples)
        rest = [sample for sample in data.samples if sample not in taken][: sampling.max_total]
        hardness = {sample: found for sample in rest if (found := self._hardness(sample)) is not None}
        self._ended("hardness")
        return add_hard(chosen, hardness, sampling)

    def _hardness(self, sample: Sample) -> float | None:
        """How near to a decision's edge the reference's answer is; None for an image that cannot be read."""
        seen = self._seen(sample, self.unreadable_hard)
        if seen is None:
            return None
        model, answers = self.reference.model, self._answer(self.reference, seen.tensors[0])
        if model.head != "boxes":
            return hardness_of_classification(model.probabilities(answers)[0])
        (found,) = model.postprocess(answers, [seen.frames[0]], COCO_NMS)
        return hardness_of_detection(found, self.request.nms.conf)

    def _compare(self, samples: Sequence[Sample]) -> tuple[Comparison, Comparison]:
        """Both answers over the samples, or over as many as `auto` takes to decide."""
        ends = [len(samples)]
        if self.request.sampling.mode == "auto":
            ends = [*(end for end in looks(len(samples)) if end < len(samples)), len(samples)]
        begin = 0
        for end in ends:
            for first in range(begin, end, GROUP):
                self._take(samples[first : min(first + GROUP, end)])
                self.progress("compare", min(first + GROUP, end) / len(samples))
            begin = end
            self.unreadable.check_any(end)
            found = self._judged(len(ends))
            if self.request.sampling.mode == "auto" and _is_decided(found):
                self.decided_after = self.kernel.images
                break
        self.unreadable.check_share(end)  # not at each look: the first few images may well have more than their share
        return found

    def _judged(self, ends: int) -> tuple[Comparison, Comparison]:
        kernel = self.kernel.judged(ends)
        if self.pipeline is self.kernel:
            return kernel, replace(kernel, name="pipeline")
        return kernel, self.pipeline.judged(ends)

    def _take(self, samples: Sequence[Sample]) -> None:
        group = [seen for sample in samples if (seen := self._seen(sample, self.unreadable)) is not None]
        for seen in group:
            self.classes |= seen.sample.classes
            seen.reference = self._answer(self.reference, seen.tensors[0])
        for seen in group:
            self.kernel.add(seen, seen.frames[0], self._answer(self.candidate, seen.tensors[0]))
            if self.pipeline is not self.kernel:
                self.pipeline.add(seen, seen.frames[1], self._answer(self.candidate, seen.tensors[1]))

    def _answer(self, subject: Subject, tensor: Array) -> Answers:
        """The answers by the names of the file whose model reads them: as they are where those are the same, else in
        order."""
        told = self.candidate if self.candidate.described and not self.reference.described else self.reference
        names = [spec.name for spec in told.runtime.outputs]
        answers = subject.answer(tensor)
        return answers if set(names) == set(answers) else dict(zip(names, answers.values(), strict=True))

    def _seen(self, sample: Sample, unreadable: Unreadable) -> Seen | None:
        """The sample's tensors; None, and noted, where it is no picture that can be read."""
        try:
            from_file = read_image(sample.path)
        except UnreadableImage as error:
            unreadable.note(sample.name, error.received)
            return None
        check_size(sample, from_file)
        first = self.reference.tensor_of(from_file, self.input_size)
        second = first if self.pipeline is self.kernel else self.candidate.tensor_of(from_file, self.input_size)
        return Seen(sample, (first[0], second[0]), (first[1], second[1]))


def _limits(request: VerifyRequest, candidate: Subject) -> Limits:
    return replace(FP16_STATISTICS if candidate.dtype == "fp16" else FP32_STATISTICS, **request.limits)


def _kernel_limits(request: VerifyRequest, candidate: Subject) -> ParityLimits | None:
    """The request's over those of the candidate's dtype; None where kernels are meant to compute otherwise.

    Nobody knows any limits for those: of INT8, or of a network that is not the same.
    """
    known = request.kernel_defaults.get(candidate.dtype) if request.same_network else None
    if known is None and request.kernel_limits:
        known = ParityLimits(boxes_px=inf, scores=inf, values=inf)
    if known is not None:
        return replace(known, **dict[str, Any](request.kernel_limits))
    if request.sampling.mode == "smoke" or candidate.model.head == "raw":
        reason = "is quantised" if candidate.dtype == "int8" else "is not the same network"
        raise InvalidVerification(
            f"{candidate.path.name} {reason}, and only its kernels would be judged here",
            expected="a task's limits (mode coverage, full or auto), or kernel limits of your own",
            received=f"mode {request.sampling.mode} without kernel limits",
            hint="ask for mode coverage, or give kernel_limits: boxes_px, scores or values",
        )
    return None


def _is_decided(found: Sequence[Comparison]) -> bool:
    """A failure anywhere decides, else every gate must be."""
    verdicts = {comparison.verdict for comparison in found}
    return "failed" in verdicts or "undecided" not in verdicts


def _doubts(found: Figures) -> tuple[str, ...]:
    """A note where the labels can hardly be of these images and classes, so that a difference of mAPs says nothing."""
    if not isinstance(found, DetectionFigures) or found.map50_reference is None or found.map50_reference >= LOW_MAP:
        return ()
    low = f"the reference's mAP at IoU 0.5 is only {found.map50_reference:.2g}, of which a difference says little"
    return (f"{low}: are the annotations of these images and classes?",)


def _silent(_phase: str, _part: float) -> None:
    """Hears progress where nobody asked for it."""
