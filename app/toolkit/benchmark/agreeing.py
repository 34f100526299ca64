"""Whether a way answers as the first one did, image for image, so that only equals are compared by their speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.toolkit import parity
from app.toolkit.benchmark.result import Agreement
from app.toolkit.models.base import HeadPart
from app.toolkit.runtimes.base import Array
from app.toolkit.verification.errors import ModelsDiffer
from app.toolkit.verification.request import Dtype

Answers = Mapping[str, Array]

COARSER: tuple[Dtype, ...] = ("fp32", "fp16", "int8")


def of_image(answers: Answers, index: int, batch_size: int) -> Answers:
    """One image's part [1, ...] of a batch's answers; an output without an axis for the batch as it is."""
    return {
        name: answer[index : index + 1] if answer.shape[:1] == (batch_size,) else answer
        for name, answer in answers.items()
    }


@dataclass(frozen=True)
class Reference:
    """The first way's answers to each of the images that take turns, [1, ...] float32."""

    way: str
    dtype: Dtype
    images: Sequence[Answers]
    parts: Sequence[HeadPart]

    def agreement(self, answers: Answers, batch_size: int, dtype: Dtype) -> Agreement:
        """Of the answers to a batch of the first images, in turn, by parity's limits for the coarser of the two dtypes.

        Outputs' names may differ between runtimes: they are then taken in order. Raises ModelsDiffer for answers of
        another number or shape.
        """
        per_image = [self._named(of_image(answers, index, batch_size)) for index in range(batch_size)]
        chosen = [self.images[index % len(self.images)] for index in range(batch_size)]
        first, second = (
            {name: np.concatenate([np.atleast_1d(one[name]) for one in images]) for name in chosen[0]}
            for images in (chosen, per_image)
        )
        self._check_shapes(first, second)
        measured = parity.measure("image", "image", first, second, self.parts)
        return judged(measured, self.parts, max(dtype, self.dtype, key=COARSER.index))

    def _named(self, answers: Answers) -> Answers:
        wanted = list(self.images[0])
        if len(wanted) != len(answers):
            raise self._differ(f"{len(wanted)} outputs", f"{len(answers)} outputs")
        return answers if set(wanted) == set(answers) else dict(zip(wanted, answers.values(), strict=True))

    def _check_shapes(self, first: Answers, second: Answers) -> None:
        for name, answer in first.items():
            if answer.shape != second[name].shape:
                raise self._differ(f"{name} {list(answer.shape)}", str(list(second[name].shape)))

    def _differ(self, expected: str, received: str) -> ModelsDiffer:
        return ModelsDiffer(
            f"its answers are of another shape than those of {self.way}: nothing was timed",
            expected=expected,
            received=received,
            hint="give files of the same model",
        )


def judged(measured: parity.InputParity, parts: Sequence[HeadPart], dtype: Dtype) -> Agreement:
    """By the limits of FP32 and FP16; INT8 has none, and only may not answer with NaN or infinity."""
    differences = {name: difference.max_abs for name, difference in measured.parts.items()}
    finite = not any(difference.non_finite for difference in measured.outputs.values())
    limits = parity.LIMITS.get(dtype)
    if limits is None:
        return Agreement(None if finite else False, differences)
    shares = parity.shares_of_limit(measured, {part.name: part.unit for part in parts}, limits)
    ok = finite and all(difference <= limit for difference, limit in shares.values())
    return Agreement(ok, differences, {name: limit for name, (_, limit) in shares.items()})


def why_not_equal(agreement: Agreement, reference: Reference | None) -> str:
    """What differs, for a row that is not timed. Only the first way has no reference: its own answers are no good."""
    limits = agreement.limits or {}
    passed = [
        f"{name} by {agreement.differences[name]:.3g} (limit {limit:.3g})"
        for name, limit in limits.items()
        if agreement.differences[name] > limit
    ]
    if not passed:
        return "its answers are in part NaN or infinite; nothing was timed"
    told = "change from one call to the next" if reference is None else f"differ from those of {reference.way}"
    return f"its answers {told}: {', '.join(passed)}; nothing was timed"
