"""What the two reports of a comparison are written from: plain values, so that any comparison can be reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.toolkit.detections import NmsSettings
from app.toolkit.verification.request import Dtype, Limits, Sampling
from app.toolkit.verification.result import Comparison, Verdict

Policy = Literal["stratified", "random", "all", "sequential"]


@dataclass(frozen=True)
class Side:
    """One of the two models; None is what its file does not tell.

    `path` is what reports call it by. `params` counts parameters, not millions. `input_shape` is what was compared,
    `input_axes` has names for the file's free axes.
    `providers` are those that ONNX Runtime really used, empty for another runtime; `provider_options` took effect, and
    `providers_refused` says by provider why it is not among them. `preprocessing` is `Preprocessing.as_dict()`.
    """

    path: str
    sha256: str
    size_bytes: int
    format: Literal["pt", "onnx", "engine"]
    dtype: Dtype
    family: str
    task: str
    runtime: str
    preprocessing: Mapping[str, Any]
    input_shape: tuple[int, ...] | None = None
    input_axes: tuple[int | str, ...] | None = None
    backbone: str | None = None
    num_classes: int | None = None
    params: int | None = None
    opset: int | None = None
    dynamic_axes: bool | None = None
    device: str = "cpu"
    providers: tuple[str, ...] = ()
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    providers_refused: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return asdict(self)


@dataclass(frozen=True)
class ReportFacts:
    """A comparison, told.

    `exported_at` (aware of its zone) is when the candidate was exported, None where nothing says so. `policy` is how
    the images were chosen; `chosen_images` were, and `sampled_images` of them were read and compared before `auto`
    stopped. `nms` is None where the answers are no boxes. `kernel_parity` is `ParityReport.as_dict()`. `names` are the
    classes'. `unreadable` gives a reason for each image that was passed over, `seconds` the time each phase took.
    """

    reference: Side
    candidate: Side
    kernel: Comparison
    pipeline: Comparison
    kernel_parity: Mapping[str, Any]
    sampling: Sampling
    policy: Policy
    chosen_images: int
    sampled_images: int
    sampled_classes: int | None
    limits: Limits
    names: Mapping[int, str]
    input_size: tuple[int, int]
    git_sha: str = "nogit"
    exported_at: datetime | None = None
    nms: NmsSettings | None = None
    strict: bool = False
    decided_after: int | None = None
    notes: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def comparisons(self) -> tuple[Comparison, Comparison]:
        """Both answers."""
        return self.kernel, self.pipeline

    @property
    def verdict(self) -> Verdict:
        """The worse of the two answers'."""
        verdicts = {one.verdict for one in self.comparisons}
        return "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed"

    @property
    def failed(self) -> bool:
        """Whether the request counts this as a failure: what was left undecided only where it is strict."""
        return self.verdict == "failed" or (self.verdict == "undecided" and self.strict)

    @property
    def preprocessing_differences(self) -> list[dict[str, Any]]:
        """[{"field", "reference", "candidate"}] of what the two prepare differently."""
        first, second = self.reference.preprocessing, self.candidate.preprocessing
        return [
            {"field": key, "reference": first.get(key), "candidate": second.get(key)}
            for key in dict.fromkeys((*first, *second))
            if first.get(key) != second.get(key)
        ]
