"""Runs `compat`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.schemas.kinds.compat import Compat, CompatMetrics, Machine
from app.toolkit.tensorrt.compat import compatibility
from app.toolkit.tensorrt.manifest import read_manifest
from app.toolkit.tensorrt.pipeline import find_builders, machine
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import version_of


def run(parameters: Compat, context: JobContext) -> CompatMetrics:
    path = context.input("input_path")
    context.phase("compare", 0.1)
    if parameters.target is None:
        target = machine(find_builders().dialect, context.options["dla_cores"])
    else:
        target = _target(parameters.target)
    found = compatibility(read_plan(path), read_manifest(path), target)
    return CompatMetrics(loads=found.loads, verdict=found.verdict, compat=found.as_dict())


def _target(told: Machine) -> Target:
    capability = version_of(told.compute_capability) if told.compute_capability else None
    return Target(
        tensorrt=version_of(told.tensorrt) if told.tensorrt else None,
        compute_capability=(capability[0], capability[1]) if capability else None,
        gpu_name=told.gpu_name,
        os=told.os,
        arch=told.arch,
        dla_cores=told.dla_cores,
    )
