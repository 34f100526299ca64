"""Runs `check_model_stats`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.schemas.kinds.check_model_stats import CheckModelStats, StatsMetrics
from app.toolkit.charts import layers_png
from app.toolkit.stats import model_stats, stats_text


def run(parameters: CheckModelStats, context: JobContext) -> StatsMetrics:
    path = context.input("input_path")
    context.phase("count", 0.1)
    found = model_stats(path, trusted=context.options["trust_checkpoints"])
    (context.workdir / f"{path.stem}_stats.txt").write_text(stats_text(found), encoding="utf-8")
    context.phase("draw", 0.6)
    picture = layers_png(found)
    if picture is not None:
        (context.workdir / f"{path.stem}_stats.png").write_bytes(picture)
    document = found.as_dict()
    return StatsMetrics(stats=document.pop("stats"), model=document)
