"""`POST /optimizing/prune_structured`: S0 section 4, and channels that really leave."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from app.schemas.common import DataSource, StrictModel
from app.schemas.kind import Kind, Slot
from app.schemas.kinds._pruning import LayerPatterns, PruneMetrics, PruneParameters

REMOVAL_ONLY = frozenset({"target", "scope", "importance", "calibration", "round_to", "include", "head", "finetune"})


class Target(StrictModel):
    """The fraction of a cost that shall be left; the ratio is found."""

    macs: float | None = Field(None, gt=0, lt=1, description="Multiply-accumulates.")
    params: float | None = Field(None, gt=0, lt=1, description="Parameters.")

    @model_validator(mode="after")
    def _one(self) -> Target:
        if (self.macs is None) == (self.params is None):
            raise ValueError('expected either {"macs": 0.6} or {"params": 0.7}')
        return self


class Finetune(StrictModel):
    """A training after the removal, which keeps the pruned widths."""

    data: DataSource
    epochs: int = Field(10, ge=1, le=1000)
    batch: int | None = Field(None, ge=1, le=1024, description="16, 8 or 4 by the size of the data where left out.")
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["cpu", "gpu"] = "cpu"


class PruneStructured(PruneParameters):
    """Zero whole slices of every layer's weights, or with `remove` take whole channels out of the network."""

    kind: Literal["prune_structured"]
    pruning_type: Literal["ln_structured"] = "ln_structured"
    n: int = Field(2, ge=1, le=16, description="The norm that ranks slices.")
    dim: int = Field(0, ge=0, le=3, description="The axis of the weights along which slices are taken.")

    remove: bool = Field(False, description="Take the channels out; `amount` is then the fraction that leaves.")
    target: Target | None = Field(None, description="With `remove`: what shall be left, instead of `amount`.")
    scope: Literal["layer", "global"] = Field("layer", description="With `remove`: of each layer, or of all together.")
    importance: Literal["l1", "l2", "taylor"] = Field(
        "l2", description="With `remove`: what ranks channels. `taylor` asks `calibration` images."
    )
    calibration: DataSource | None = Field(None, description="With `remove` and `taylor`: images, without labels.")
    round_to: int = Field(8, ge=1, le=128, description="With `remove`: widths stay multiples of this.")
    include: LayerPatterns = Field((), description="With `remove`: only these layers lose channels.")
    head: bool = Field(False, description="With `remove`: the inner layers of the head too; its answers never.")
    finetune: Finetune | None = Field(None, description="With `remove`: train afterwards; the best weights are kept.")

    @model_validator(mode="after")
    def _fits_together(self) -> PruneStructured:
        fields = type(self).model_fields
        # Not `model_fields_set`: a record gives every field when the job is run.
        changed = {name for name in fields if getattr(self, name) != fields[name].default}
        if not self.remove and (extra := sorted(REMOVAL_ONLY & changed)):
            raise ValueError(f"{', '.join(extra)}: only with `remove`: true, which takes channels out")
        if self.remove and (extra := sorted({"n", "dim"} & changed)):
            raise ValueError(f"{', '.join(extra)}: `remove` takes whole output channels, ranked by `importance`")
        if self.target is not None and "amount" in changed:
            raise ValueError("give either `amount` or `target`: the target decides the amount")
        if self.remove and self.target is None and not 0 < self.amount < 1:
            raise ValueError(
                "amount: with `remove`, above 0 (which removes nothing) and below 1 (which leaves nothing)"
            )
        if (self.importance == "taylor") != (self.calibration is not None):
            raise ValueError("importance taylor and `calibration` images belong together")
        if self.finetune is not None and self.finetune.data.annotations is None:
            raise ValueError("finetune.data.annotations: a training needs COCO annotations")
        return self


def _slot(parameters: Any) -> Slot:
    training = parameters.finetune
    return Slot("gpu") if training is not None and training.device == "gpu" else Slot()


KIND = Kind(
    parameters=PruneStructured,
    metrics=PruneMetrics,
    summary="Zero whole slices of a `.pt`, or with `remove` take channels out: smaller and faster for real",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "prune_structured",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
            "amount": 0.2,
            "pruning_type": "ln_structured",
            "n": 2,
            "dim": 0,
        },
    },
    slot=_slot,
    needs=("torch", "ultralytics", "timm", "onnx", "onnxruntime", "torch_pruning"),
)
