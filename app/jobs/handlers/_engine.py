"""What the two engine builders share: from the request's words to the toolkit's, and what is said of the engine."""

from __future__ import annotations

from pathlib import Path

from app.jobs.context import JobContext
from app.schemas.kinds._engine import BuildParameters, EngineMetrics
from app.toolkit.stats import model_stats, stats_text
from app.toolkit.tensorrt.pipeline import PHASES, EngineRequest, EngineResult, build_engine
from app.toolkit.tensorrt.preflight import Wish
from app.toolkit.tensorrt.prepare import Images
from app.toolkit.tensorrt.request import Precision
from app.toolkit.tensorrt.targets import profile_named

BEGINS = dict(zip(PHASES, (0.0, 0.02, 0.1, 0.12, 0.15, 0.95), strict=True))
"""Where in the whole job each phase begins."""

MIB_PER_BYTE = 1 / 1024**2


def wish(
    parameters: BuildParameters, context: JobContext, precision: Precision, input_size: tuple[int, int] | None
) -> Wish:
    """What a request asks for, with the service's defaults."""
    options = context.options
    profile = profile_named(parameters.profile) if parameters.profile else None
    default = None if profile else options["trt_workspace_mib"]
    return Wish(
        precision,
        device=parameters.device,
        dla_policy=parameters.dla_policy,
        workspace_mib=parameters.workspace_mib or default,
        input_size=input_size or (options["trt_default_h"], options["trt_default_w"]),
        max_batch=parameters.max_batch,
        profile=profile,
    )


def run_build(
    parameters: BuildParameters,
    context: JobContext,
    asked: Wish,
    images: Images | None = None,
    *,
    calibration_cache: Path | None = None,
    mixed_fp16: bool = False,
) -> EngineMetrics:
    request = EngineRequest(
        context.input("input_path"),
        context.output,
        asked,
        images,
        calibration_cache=calibration_cache,
        mixed_fp16=mixed_fp16,
        sparse=parameters.sparse,
        dla_cores=context.options["dla_cores"],
        timing_caches=context.timing_cache_dir,
        timeout_sec=context.options["trtexec_timeout_sec"],
    )

    def progress(name: str, part: float) -> None:
        index = PHASES.index(name)
        end = BEGINS[PHASES[index + 1]] if index + 1 < len(PHASES) else 1.0
        context.phase(name, BEGINS[name] + (end - BEGINS[name]) * part)

    made = build_engine(request, _scratch(context), on_line=print, progress=progress)
    return _metrics(made)


def _scratch(context: JobContext) -> Path:
    """A hidden folder: what a build makes on the way is no artifact."""
    folder = context.workdir / ".build"
    folder.mkdir(exist_ok=True)
    return folder


def _metrics(made: EngineResult) -> EngineMetrics:
    found = model_stats(made.engine)
    made.engine.with_name(f"{made.engine.stem}_stats.txt").write_text(stats_text(found), encoding="utf-8")
    manifest, log = made.manifest.as_dict(), made.build.log
    activation = log.numbers.get("activation_bytes")
    return EngineMetrics(
        stats=found.as_dict()["stats"],
        tensorrt_version=made.manifest.tensorrt_version,
        device_memory_mb=None if activation is None else round(activation * MIB_PER_BYTE, 2),
        inputs=manifest["inputs"],
        outputs=manifest["outputs"],
        placement=log.placement.as_dict(),
        build=made.build.as_dict(),
        preflight=made.preflight.as_dict(),
        calibration=made.calibration,
        manifest=manifest,
        notes=list(made.notes),
    )
