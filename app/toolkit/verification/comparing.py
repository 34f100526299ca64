"""One of the two answers while images come in: figures, gates, and the raw answers' parity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from app.toolkit import parity
from app.toolkit.detections import COCO_NMS, Detections, NmsSettings
from app.toolkit.images import LetterboxFrame
from app.toolkit.parity import InputParity, ParityLimits, ParityReport
from app.toolkit.runtimes.base import Array
from app.toolkit.verification.classification import ClassificationTally
from app.toolkit.verification.data import Sample, VerificationData
from app.toolkit.verification.detection import DetectionTally
from app.toolkit.verification.errors import ModelsDiffer
from app.toolkit.verification.gates import parity_gates, raw_figures
from app.toolkit.verification.request import Limits, VerifyRequest
from app.toolkit.verification.result import Comparison, Gate
from app.toolkit.verification.subject import Answers, Subject

NO_LIMITS = ParityLimits(boxes_px=inf, scores=inf, values=inf)


@dataclass
class Seen:
    """One image's tensors [1, C, H, W] and frames, by the reference's preprocessing and by the candidate's."""

    sample: Sample
    tensors: tuple[Array, Array]
    frames: tuple[LetterboxFrame, LetterboxFrame]
    reference: Answers = field(default_factory=dict)


class Comparing:
    """What both models said, image by image.

    `limits` judge the task, but in a smoke test, whose images are too few for rates. `parity_limits` judge the raw
    answers; None where they may differ (INT8, another network, another preprocessing of a known task). A fault in the
    graph often leaves the task's figures where they were on the images at hand, and never the raw answers
    (docs/verification.md).
    """

    def __init__(
        self,
        name: Literal["kernel", "pipeline"],
        request: VerifyRequest,
        reference: Subject,
        data: VerificationData,
        limits: Limits,
        parity_limits: ParityLimits | None,
    ) -> None:
        self.name = name
        self._parity_limits = parity_limits
        self.images = 0
        self._request = request
        self._model = reference.model
        self._with_map = data.coco is not None
        self._inputs: list[InputParity] = []
        confidence = request.sampling.confidence
        self._classes = self._boxes = None
        if self._model.head == "boxes":
            self._boxes = DetectionTally(self._model.names, limits, request.nms, data.coco, confidence, data.unlabelled)
        elif self._model.head != "raw":
            self._classes = ClassificationTally(self._model.names, limits, confidence)

    def add(self, seen: Seen, frame: LetterboxFrame, candidate: Answers) -> None:
        """The candidate's answers to an image that the reference has answered; `frame` maps their boxes back.

        Raises ModelsDiffer for answers of another shape.
        """
        self._check_shapes(seen.reference, candidate)
        sample = seen.sample
        self._inputs.append(parity.measure(sample.name, "image", seen.reference, candidate, self._model.parts))
        self.images += 1
        if self._classes is not None:
            first, second = (self._model.probabilities(answers)[0] for answers in (seen.reference, candidate))
            self._classes.add(sample.name, sample.path, first, second, sample.label)
        elif self._boxes is not None:
            self._add_boxes(self._boxes, seen, frame, candidate)

    def _add_boxes(self, tally: DetectionTally, seen: Seen, frame: LetterboxFrame, candidate: Answers) -> None:
        def both(settings: NmsSettings) -> list[Detections]:
            pairs = ((seen.reference, seen.frames[0]), (candidate, frame))
            return [self._model.postprocess(answers, [place], settings)[0] for answers, place in pairs]

        non_finite = sum(difference.non_finite for difference in self._inputs[-1].outputs.values())
        first, second = both(self._request.nms)
        coco = both(COCO_NMS) if self._with_map else (None, None)
        sample = seen.sample
        tally.add(sample.name, sample.path, sample.image_id, first, second, *coco, non_finite=non_finite)

    def judged(self, looks: int) -> Comparison:
        """Figures and gates by what was seen so far; `auto` looks at most `looks` times."""
        tally = self._classes or self._boxes
        if tally is None:
            figures = raw_figures(self.parity_report())
            return Comparison(self.name, figures, self._gates(looks))
        return Comparison(self.name, tally.figures(), self._gates(looks), tally.worst())

    def _gates(self, looks: int) -> tuple[Gate, ...]:
        tally = self._classes or self._boxes
        if self._request.sampling.mode == "smoke" or tally is None:
            return self._parity_gates()
        task = tally.sequential(looks) if self._request.sampling.mode == "auto" else tally.gates()
        named = {gate.name for gate in task}
        return (*task, *(gate for gate in self._parity_gates() if gate.name not in named))

    def _parity_gates(self) -> tuple[Gate, ...]:
        units = {part.name: part.unit for part in self._model.parts}
        if self._parity_limits is None:
            units = {}
        return parity_gates(self._inputs, units, self._parity_limits or NO_LIMITS)

    def parity_report(self, reference: str = "reference", candidate: str = "candidate") -> ParityReport:
        """The raw answers' differences on every image, by the names of what ran the two."""
        return parity.judge(
            self._inputs, self._model.parts, self._parity_limits or NO_LIMITS, reference=reference, candidate=candidate
        )

    def _check_shapes(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        for name, answer in reference.items():
            if answer.shape != candidate[name].shape:
                raise ModelsDiffer(
                    f"the two models cannot be compared: their answers {name} are of different shape",
                    expected=f"reference: {list(answer.shape)}",
                    received=f"candidate: {list(candidate[name].shape)}",
                    hint="compare a model with what was made from it, at one input size",
                )
