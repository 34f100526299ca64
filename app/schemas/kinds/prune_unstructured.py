"""`POST /optimizing/prune_unstructured`: S0 section 3."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.kind import Kind
from app.schemas.kinds._pruning import PruneMetrics, PruneParameters


class PruneUnstructured(PruneParameters):
    """Zero single weights of every convolution and linear layer."""

    kind: Literal["prune_unstructured"]
    pruning_type: Literal["l1_unstructured", "random_unstructured"] = Field(
        "l1_unstructured", description="The smallest weights, or random ones."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Which random ones.")


KIND = Kind(
    parameters=PruneUnstructured,
    metrics=PruneMetrics,
    summary="Zero single weights of a `.pt` (which makes it neither smaller nor faster, and the result says so)",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "prune_unstructured",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
            "amount": 0.2,
            "pruning_type": "l1_unstructured",
        },
    },
    needs=("torch", "ultralytics", "timm", "onnx", "onnxruntime"),
)
