"""Runs `prune_unstructured`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.jobs.handlers._pruning import finished, opened
from app.schemas.kinds._pruning import PruneMetrics
from app.schemas.kinds.prune_unstructured import PruneUnstructured
from app.toolkit.pruning.masks import mask_unstructured


def run(parameters: PruneUnstructured, context: JobContext) -> PruneMetrics:
    checkpoint, network = opened(context, parameters)
    context.phase("prune", 0.2)
    masked, report = mask_unstructured(
        network, parameters.amount, parameters.pruning_type, seed=parameters.seed, exclude=parameters.exclude
    )
    return finished(context, parameters, checkpoint, masked, report)
