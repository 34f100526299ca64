"""What the two pruning kinds share: S0 sections 3 and 4."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from app.schemas.common import DataSource, ImageSize, InputFile, OutputFile
from app.schemas.kind import Metrics, Parameters

LayerPatterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=1000)]
"""Names of layers as `check_model_stats` lists them, with all that lies under them; `*` stands for anything."""


class PruneParameters(Parameters):
    """A checkpoint in, a pruned checkpoint out."""

    input_path: Annotated[
        str,
        InputFile(".pt"),
        Field(min_length=1, description="Artifact key, or absolute path on the server."),
    ]
    output_path: Annotated[str, OutputFile(".pt", "{stem}_pruned.pt")] | None = Field(
        None, description="Name of the result; `<stem>_pruned.pt` where left out."
    )
    amount: float = Field(0.2, ge=0, le=1, description="Fraction to prune, 0.0 to 1.0.")
    exclude: LayerPatterns = Field((), description="Layers that are left alone.")
    input_size: ImageSize = (640, 640)
    data: DataSource | None = Field(
        None, description="Images with COCO annotations: the metrics then have mAP before and after."
    )

    @model_validator(mode="after")
    def _data_has_labels(self) -> PruneParameters:
        if self.data is not None and self.data.annotations is None:
            raise ValueError("data.annotations: mAP needs COCO annotations; leave `data` out to do without")
        return self


class PruneMetrics(Metrics):
    """What pruning did, in numbers and in a sentence."""

    stats: dict[str, Any] = Field(description="Of the result: size_mb, total_params, nonzero_params, sparsity_pct.")
    verdict: str = Field(description="What was gained, and what was not, in one sentence.")
    before: dict[str, Any] = Field(
        description="Parameters, zeros, MACs, file size, latency; mAP where `data` is given."
    )
    after: dict[str, Any] = Field(description="The same of the result.")
    latency: list[dict[str, Any]] = Field(description="ONNX Runtime here, both in turns, by number of threads.")
    pruning: dict[str, Any] = Field(description="What was done to each layer, what was left alone, warnings.")
    finetune: dict[str, Any] | None = Field(None, description="The training after the removal, epoch by epoch.")
