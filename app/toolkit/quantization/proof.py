"""What quantisation cost: the FP32 model and the INT8 one on images that calibrated neither.

With labels the measure is mAP50-95; without, how far the two agree (`app.toolkit.agreement`), where FP32 has 1 by
definition. The FP32 model runs once; each candidate is an evaluation, and they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.toolkit.agreement import AGREEMENT_NMS, class_agreement, detection_agreement, output_agreement
from app.toolkit.coco import CocoData, CocoResult, evaluate
from app.toolkit.images import read_image
from app.toolkit.models.exported import ExportedModel
from app.toolkit.runtimes.base import fill_batch
from app.toolkit.runtimes.ort_runtime import OrtRuntime

CLASS_SCORES_AXES = 2  # [N, classes]

Measure = Literal["map50_95", "detection_agreement", "top1_agreement", "output_cosine"]


@dataclass(frozen=True)
class Accuracy:
    """One measure, 0..1, before and after; `map50` too where there were labels."""

    measure: Measure
    before: float
    after: float
    images: int
    map50_before: float | None = None
    map50_after: float | None = None

    @property
    def drop(self) -> float:
        """What was lost; negative where the candidate is better."""
        return self.before - self.after

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        figures = {"before": self.before, "after": self.after, "drop": self.drop}
        if self.map50_before is not None:
            figures |= {"map50_before": self.map50_before, "map50_after": self.map50_after or 0.0}
        rounded = {name: round(value, 5) for name, value in figures.items()}
        return {"measure": self.measure, "images": self.images, **rounded}


class HeldOut:
    """Images that took no part in the calibration, and what the FP32 model says of them.

    `data` has labels and wins over `images`. `input_size` is (H, W) in px, `threads` are ONNX Runtime's.
    """

    def __init__(
        self,
        model: ExportedModel,
        reference: bytes,
        *,
        images: Sequence[Path] = (),
        data: CocoData | None = None,
        input_size: tuple[int, int],
        threads: int | None = None,
    ) -> None:
        self._model, self._images, self._data = model, tuple(images), data
        self._input_size, self._threads = input_size, threads
        self.evaluations = 0
        if data is not None:
            self._map_before = self._map(reference, data)
        else:
            self._answers_before = self._answers(reference)

    def score(self, candidate: bytes) -> Accuracy:
        """Evaluate a quantised graph. Raises InvalidAnnotations, RuntimeUnavailable."""
        self.evaluations += 1
        if self._data is None:
            return self._agreement(self._answers(candidate))
        before, after = self._map_before, self._map(candidate, self._data)
        return Accuracy("map50_95", before.map50_95, after.map50_95, before.images, before.map50, after.map50)

    def _map(self, graph: bytes, data: CocoData) -> CocoResult:
        with OrtRuntime(graph, threads=self._threads) as runtime:
            return evaluate(self._model, runtime, data, input_size=self._input_size)

    def _answers(self, graph: bytes) -> list[Any]:
        """Of each image its Detections, which are small where raw answers are not; else the raw answers by name."""
        found: list[Any] = []
        with OrtRuntime(graph, threads=self._threads) as runtime:
            for path in self._images:
                tensor, frame = self._model.preprocess(read_image(path), self._input_size)
                answers = runtime.infer({runtime.inputs[0].name: fill_batch(tensor, runtime.inputs[0])})
                if self._model.head == "boxes":
                    found += self._model.postprocess(answers, [frame], AGREEMENT_NMS)
                else:
                    found.append({name: answer[:1] for name, answer in answers.items()})
        return found

    def _agreement(self, after: list[Any]) -> Accuracy:
        before, images = self._answers_before, len(self._images)
        if self._model.head == "boxes":
            return Accuracy("detection_agreement", 1.0, detection_agreement(before, after), images)
        if all(len(one) == 1 and next(iter(one.values())).ndim == CLASS_SCORES_AXES for one in before):
            scores = ([next(iter(one.values())) for one in answers] for answers in (before, after))
            return Accuracy("top1_agreement", 1.0, class_agreement(*scores), images)
        return Accuracy("output_cosine", 1.0, output_agreement(before, after), images)
