"""When enough images have been compared: tests that may be looked at after every image without losing their promise.

An interval of a fixed sample promises nothing if one looks again and again until it says what one hopes for. These do:

- `ProportionTest`, for means of values in 0..1 (a mismatch is 0 or 1). It bets on each value against the hypothesis
  that the mean is on the other side of the limit. If that holds, no bet gains on average, and by Ville's inequality the
  capital ever grows to 1 / alpha with a probability of at most alpha (Ville 1939; Wald 1945; the bets are those of
  Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024). This is exact, for any
  number of images.
- `LookTest`, for values without a useful bound (the mean of MSEs, a difference of mAPs). Its promise is asymptotic.

Both speak of the images that could have been drawn; the images must come in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from app.toolkit.verification.result import Verdict

Float64Array = npt.NDArray[np.float64]

# The means, as multiples of the limit, that the bets are best for; the capital is spread evenly over them. Zero decides
# soonest for a model without a fault, ten for a broken one, those near 1 for what is near the limit.
BELOW = np.array([0.0, 0.25, 0.5])
ABOVE = np.array([1.5, 3.0, 10.0])
# What a bet that the mean is above the limit may at most lose, so that one value cannot end it.
MAX_LOSS = 0.75
# Halvings of 0..1 in search of an interval's end: to 1e-9.
HALVINGS = 30
# With fewer observations, Student's distribution says nothing about what is not normal.
MIN_OBSERVATIONS = 10


def wilson_interval(count: int, total: int, confidence: float) -> tuple[float, float]:
    """The two-sided interval of a proportion from one fixed sample (Wilson 1927); nothing seen is (0, 1)."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def looks(max_total: int, *, first: int = 32, growth: float = 1.25) -> tuple[int, ...]:
    """The image counts at which to look: the first, each next `growth` times as many, and the last at `max_total`."""
    counts = []
    count = first
    while count < max_total:
        counts.append(count)
        count = math.ceil(count * growth)
    return (*counts, max_total)


class ProportionTest:
    """Is the mean of values in 0..1 at most `limit`? Decided at the first value that settles it, and not revised.

    A mean above the limit is called "passed", or one below it "failed", with a probability of at most 1 - `confidence`
    each. A limit of 0 can only fail, at the first value above 0: nobody can prove that a thing never happens. A limit
    of 1 or more always passes. Raises ValueError for a negative limit or a confidence outside of 0..1.
    """

    def __init__(self, limit: float, confidence: float) -> None:
        if not limit >= 0 or not 0 < confidence < 1:
            raise ValueError(f"no test has a limit of {limit} at a confidence of {confidence}")
        self.limit = limit
        self.confidence = confidence
        self.verdict: Verdict = "passed" if limit >= 1 else "undecided"
        self._enough = -math.log1p(-confidence)
        self._values: list[float] = []
        self._log_below = np.zeros(len(BELOW))
        self._log_above = np.zeros(len(ABOVE))

    def add(self, value: float) -> None:
        """Bet on one more value. Raises ValueError for one outside of 0..1."""
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not in 0..1")
        self._values.append(value)
        if self.verdict == "undecided":
            self._bet(np.array([value]))

    def _bet(self, value: Float64Array) -> None:
        if self.limit == 0:
            self.verdict = "failed" if value[0] > 0 else "undecided"
            return
        self._log_below += log_gains_below(value, self.limit)[0]
        self._log_above += log_gains_above(value, self.limit)[0]
        if _log_mean(self._log_below) >= self._enough:
            self.verdict = "passed"
        elif _log_mean(self._log_above) >= self._enough:
            self.verdict = "failed"

    @property
    def mean(self) -> float:
        """Of the values so far; 0 of none."""
        return float(np.mean(self._values)) if self._values else 0.0

    def interval(self) -> tuple[float, float]:
        """The limits that these values would leave undecided: bounds of the mean, each right at `confidence` whenever
        one looks, that agree with the verdict."""
        values = np.array(self._values)
        low, _ = _halve(lambda limit: self._is_enough(log_gains_above(values, limit)), 0.0, self.mean)
        _, high = _halve(lambda limit: not self._is_enough(log_gains_below(values, limit)), self.mean, 1.0)
        if self.verdict == "passed":
            high = min(high, self.limit)
        if self.verdict == "failed":
            low = max(low, self.limit)
        return low, high

    def _is_enough(self, log_gains: Float64Array) -> bool:
        return _log_mean(log_gains.sum(axis=0)) >= self._enough


def log_gains_below(values: Float64Array, limit: float) -> Float64Array:
    """The log of what each value [...] wins for bets that the mean is below the limit, [..., BELOW].

    The stake that is best for 0/1 values of mean q makes the bet the likelihood ratio of q against the limit.
    """
    with np.errstate(divide="ignore"):  # the bet on 0 loses all at the first 1
        return np.asarray(np.log1p((1 - BELOW) * ((limit - values[..., None]) / (1 - limit))))


def log_gains_above(values: Float64Array, limit: float) -> Float64Array:
    """The same for bets that the mean is above the limit, [..., ABOVE]."""
    stakes = np.minimum((ABOVE - 1) / (1 - limit), MAX_LOSS / limit)
    return np.asarray(np.log1p(stakes * (values[..., None] - limit)))


def _log_mean(logs: Float64Array) -> float:
    return float(np.logaddexp.reduce(logs) - math.log(len(logs)))


def _halve(is_before: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """The two sides of the point in low..high up to which `is_before` holds, never asking at an end itself."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if is_before(middle) else (low, middle)
    return low, high


@dataclass(frozen=True)
class LookTest:
    """Is the magnitude of a value at most `limit`? Judged at no more than `looks` looks, each anew.

    The error 1 - `confidence` is spent evenly over the looks (Bonferroni), by Student's distribution. It is asymptotic:
    for estimates that are near to normal. A rare and large difference that no image has shown yet is not seen by it,
    unless `unseen` says how much of the value such images could be: `unseen_share`, for a value that an image moves by
    about its share.
    """

    limit: float
    confidence: float
    looks: int
    unseen: float = 0.0

    def interval(self, estimate: float, standard_error: float, observations: int) -> tuple[float, float] | None:
        """Bounds of the value's magnitude, right at all looks together; None from too few observations."""
        if observations < MIN_OBSERVATIONS:
            return None
        error = (1 - self.confidence) / (2 * self.looks)
        half = student_quantile(1 - error, observations - 1) * standard_error
        magnitude = abs(estimate)
        return max(0.0, magnitude - half), magnitude + half + self.unseen

    def look(self, estimate: float, standard_error: float, observations: int) -> Verdict:
        """The verdict at this look: where all of the interval is on one side of the limit."""
        bounds = self.interval(estimate, standard_error, observations)
        if bounds is None:
            return "undecided"
        low, high = bounds
        return "passed" if high <= self.limit else "failed" if low > self.limit else "undecided"


def unseen_share(images: int, confidence: float) -> float:
    """The largest share that images of a kind may have of all, where none of those drawn was one ("rule of three").

    Whoever goes on drawing until this is small enough misses a larger share with a probability of 1 - `confidence`, at
    however many looks.
    """
    return -math.log1p(-confidence) / images


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, by the expansion of Abramowitz and Stegun 26.7.5.

    From 9 degrees of freedom on, and for tails of 1e-4 or more, the tail is right within 1 %.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
