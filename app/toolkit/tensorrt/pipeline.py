"""From an ONNX file to an engine with its manifest: looked at first, made ready for the release, built, described.

Which builder: trtexec where it is, else TensorRT's Python package. INT8 that calibrates on images needs the package;
where that is missing, or the release has no calibration (11), the ONNX is quantised to Q/DQ first.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onnx import ModelProto

from app.toolkit.errors import PreflightFailed
from app.toolkit.onnx_file import input_specs, load_onnx, opset_of, output_specs, write_whole
from app.toolkit.tensorrt import builder, trtexec
from app.toolkit.tensorrt.api import open_api
from app.toolkit.tensorrt.calibrator import Calibration
from app.toolkit.tensorrt.dialects import Dialect, command_line, dialect_of
from app.toolkit.tensorrt.errors import DlaUnavailable, TensorrtMissing, TrtexecMissing
from app.toolkit.tensorrt.manifest import Manifest, engine_entries, machine_entries, sha256_of, write_manifest
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.preflight import Preflight, Wish, built_from, preflight
from app.toolkit.tensorrt.prepare import Images, calibration_batches, cast_to_fp16, quantised
from app.toolkit.tensorrt.request import BuildRequest, InputShapes, Int8Source
from app.toolkit.tensorrt.targets import Target, check_buildable_here, local_target, target_of
from app.toolkit.tensorrt.timing_cache import timing_cache_path
from app.toolkit.tensorrt.trtexec import Trtexec, TrtexecBuild
from app.toolkit.tensorrt.versions import version_text

Progress = Callable[[str, float], None]
OnLine = Callable[[str], None]
PHASES = ("preflight", "prepare", "start", "parse", "build", "save")


@dataclass(frozen=True)
class Builders:
    """What can build here. `python` is the dialect of the installed package."""

    trtexec: Trtexec | None
    python: Dialect | None

    @property
    def dialect(self) -> Dialect | None:
        """Of what builds without calibration."""
        return self.trtexec.dialect if self.trtexec else self.python


def find_builders() -> Builders:
    """Asks trtexec for its version, and the package, if they are installed; neither opens the GPU.

    Raises TrtexecMissing for one that does not answer, ReleaseUnsupported.
    """
    try:
        path = trtexec.find_trtexec()
    except TrtexecMissing:
        executable = None
    else:
        executable = trtexec.probe(path)
    installed = importlib.util.find_spec("tensorrt") is not None
    return Builders(executable, open_api().dialect if installed else None)


@dataclass(frozen=True)
class EngineRequest:
    """One engine. `images` calibrate INT8, unless `calibration_cache` or the ONNX's own Q/DQ nodes do.

    `dla_cores` overrides what is known of this machine; `timing_caches` is a folder, None for none.
    """

    onnx: Path
    engine: Path
    wish: Wish
    images: Images | None = None
    calibration_cache: Path | None = None
    mixed_fp16: bool = False
    sparse: bool = False
    dla_cores: int | None = None
    timing_caches: Path | None = None
    timeout_sec: float = trtexec.DEFAULT_TIMEOUT_SEC


@dataclass(frozen=True)
class EngineResult:
    """An engine on disk, and what is known of it."""

    engine: Path
    manifest: Manifest
    preflight: Preflight
    build: TrtexecBuild | builder.PythonBuild
    calibration: dict[str, Any] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ready:
    """The graph that TensorRT parses, and where its INT8 comes from."""

    onnx: Path
    built_from: str
    int8_from: Int8Source | None
    typed: bool
    report: dict[str, Any] | None = None


def look(request: EngineRequest, here: Target, line: str) -> Preflight:
    """The preflight of a request on a machine; `line` as `line_elsewhere` gives it."""
    return preflight(request.onnx, _wish(request), here, command_line=line)


def build_engine(
    request: EngineRequest, folder: Path, *, on_line: OnLine, progress: Progress = lambda _phase, _part: None
) -> EngineResult:
    """Build; `folder` takes what is made on the way. `<engine's stem>_preflight.json` is written in any case.

    `progress` hears (phase, fraction) for `PHASES`. Raises TrtexecMissing where nothing can build, PreflightFailed,
    what `trtexec.build` and `builder.build` raise, and DlaUnavailable where `dla_policy` strict was not kept.
    """
    progress("preflight", 0.0)
    builders = find_builders()
    dialect = builders.dialect
    if dialect is None:
        raise TrtexecMissing(
            "this machine cannot build engines",
            expected="trtexec, or TensorRT's Python package",
            received="neither",
            hint="use an image made from Dockerfile.x86 or Dockerfile.jetson",
        )
    here = machine(dialect, request.dla_cores)
    line = line_elsewhere(request)
    seen = look(request, here, line)
    write_whole(
        json.dumps(seen.as_dict(), indent=2).encode(), request.engine.with_name(f"{request.engine.stem}_preflight.json")
    )
    if request.wish.profile is not None:
        check_buildable_here(request.wish.profile, here, request.onnx.name, line)
    refuse_problems(seen, dialect)
    progress("prepare", 0.0)
    ready = _prepared(request, builders, dialect, folder)
    asked = _build_request(request, ready, seen, _timing_cache(request, here, dialect))
    made = _build(asked, request, builders, on_line, progress)
    _keep_policy(request, made)
    manifest = _manifest(request, ready, asked, made, here)
    write_manifest(manifest, request.engine)
    return EngineResult(request.engine, manifest, seen, made, ready.report, _notes(request, made))


def machine(dialect: Dialect | None, dla_cores: int | None) -> Target:
    """This machine, with the TensorRT version that its builder has."""
    here = local_target()
    if dialect is not None:
        here = replace(here, tensorrt=dialect.version)
    return here if dla_cores is None else replace(here, dla_cores=dla_cores)


def refuse_problems(seen: Preflight, dialect: Dialect | None) -> None:
    """Raises PreflightFailed for what stands in the way, but for a calibration that Q/DQ will take the place of."""
    replaced = dialect is not None and not dialect.precision_flags
    problems = [one for one in seen.problems if not (replaced and one.rule == "CALIBRATION_GONE")]
    if problems:
        where = ", ".join(problems[0].where[:3])
        raise PreflightFailed(
            "the build would fail: " + "; ".join(one.what for one in problems),
            expected="an ONNX and a request that this TensorRT can build",
            received=", ".join(one.rule for one in problems) + (f" at {where}" if where else ""),
            hint="; ".join(dict.fromkeys(one.instead for one in problems if one.instead)),
        )


def _wish(request: EngineRequest) -> Wish:
    """With where INT8 will come from, as far as the request says."""
    source: Int8Source | None = None
    if request.wish.precision == "int8" and request.calibration_cache is not None:
        source = "calibration_cache"
    elif request.wish.precision == "int8" and request.images is not None:
        source = "calibrator"
    return replace(request.wish, int8_from=request.wish.int8_from or source)


def line_elsewhere(request: EngineRequest) -> str:
    """trtexec's command line for the profile's machine; empty where its release is not known."""
    profile = request.wish.profile
    if profile is None or profile.tensorrt is None or request.wish.precision not in profile.precisions:
        return ""
    asked = BuildRequest(
        Path(request.onnx.name),
        Path(request.engine.name),
        precision=request.wish.precision,
        workspace_mib=request.wish.workspace,
        shapes=preflight(request.onnx, request.wish, target_of(profile)).shapes,
    )
    return " ".join(["trtexec", *command_line(asked, dialect_of((*profile.tensorrt, 0)))])


# -- the graph ----------------------------------------------------------------------------------------------------
def _prepared(request: EngineRequest, builders: Builders, dialect: Dialect, folder: Path) -> _Ready:
    model = load_onnx(request.onnx)
    kind = built_from(model)
    if request.wish.precision == "int8":
        return _prepared_int8(request, builders, dialect, model, kind, folder)
    if request.wish.precision == "fp16" and not dialect.precision_flags:
        if kind == "fp16 onnx":
            return _Ready(request.onnx, kind, None, True)
        return _Ready(cast_to_fp16(model, folder / f"{request.onnx.stem}_fp16.onnx"), "fp16 onnx", None, True)
    return _Ready(request.onnx, kind, None, False)


def _prepared_int8(
    request: EngineRequest, builders: Builders, dialect: Dialect, model: ModelProto, kind: str, folder: Path
) -> _Ready:
    typed = not dialect.precision_flags
    if kind == "qdq onnx":
        return _Ready(request.onnx, kind, "qdq", typed)
    if request.calibration_cache is not None:
        return _Ready(request.onnx, kind, "calibration_cache", False)
    if builders.python is not None and builders.python.precision_flags:
        return _Ready(request.onnx, kind, "calibrator", False)
    if request.wish.dla_core is not None and not dialect.dla_takes_types:
        raise TensorrtMissing(
            "INT8 on a DLA is calibrated by TensorRT's Python package, which is not installed",
            expected="the package tensorrt beside trtexec, or a calibration cache of an earlier build",
            received=f"trtexec {dialect.release} alone, which cannot calibrate",
            hint="install JetPack's python3-libnvinfer, or give calibration_cache, or build for the GPU",
        )
    assert request.images is not None  # noqa: S101 - the preflight refuses INT8 without ranges
    path = folder / f"{request.onnx.stem}_qdq.onnx"
    return _Ready(path, "qdq onnx", "qdq", typed, quantised(model, request.images, path))


# -- the build ----------------------------------------------------------------------------------------------------
def _build_request(request: EngineRequest, ready: _Ready, seen: Preflight, timing_cache: Path | None) -> BuildRequest:
    return BuildRequest(
        ready.onnx,
        request.engine,
        precision=request.wish.precision,
        dla_core=request.wish.dla_core,
        int8_from=ready.int8_from,
        calibration_cache=request.calibration_cache if ready.int8_from == "calibration_cache" else None,
        mixed_fp16=request.mixed_fp16,
        sparse=request.sparse,
        strongly_typed=ready.typed,
        workspace_mib=request.wish.workspace,
        shapes=seen.shapes,
        timing_cache=timing_cache,
    )


def _timing_cache(request: EngineRequest, here: Target, dialect: Dialect) -> Path | None:
    """None where the GPU is not known: a cache of another one's times is worse than none."""
    if request.timing_caches is None or here.gpu_name is None or here.compute_capability is None:
        return None
    request.timing_caches.mkdir(parents=True, exist_ok=True)
    return timing_cache_path(
        request.timing_caches,
        version=dialect.version,
        gpu_name=here.gpu_name,
        compute_capability=here.compute_capability,
    )


def _build(
    asked: BuildRequest,
    request: EngineRequest,
    builders: Builders,
    on_line: OnLine,
    progress: Progress,
) -> TrtexecBuild | builder.PythonBuild:
    if builders.trtexec is not None and asked.int8_from != "calibrator":
        return trtexec.build(
            asked, builders.trtexec, timeout_sec=request.timeout_sec, on_line=on_line, progress=progress
        )
    return builder.build(asked, calibration=_calibration(asked, request), on_line=on_line, progress=progress)


def _calibration(asked: BuildRequest, request: EngineRequest) -> Calibration | None:
    if asked.int8_from != "calibrator" or request.images is None:
        return None
    batches = calibration_batches(load_onnx(request.onnx), request.images)
    cache = request.engine.with_name(f"{request.engine.stem}_calib.cache")
    return Calibration(batches.stream, batches.batch_size, max_batches=request.images.max_batches, cache=cache)


# -- what is said of it -------------------------------------------------------------------------------------------
def _keep_policy(request: EngineRequest, made: TrtexecBuild | builder.PythonBuild) -> None:
    """`strict` means that no layer left the DLA; an engine that broke it is not delivered."""
    support = made.dla if isinstance(made, builder.PythonBuild) else None
    left = made.log.placement.gpu_layers or (support.refused if support else ())
    if request.wish.dla_core is None or request.wish.dla_policy != "strict" or not left:
        return
    request.engine.unlink(missing_ok=True)
    raise DlaUnavailable(
        f"{len(left)} layers were put on the GPU, which dla_policy strict does not allow",
        expected="every layer on the DLA",
        received=", ".join(left[:8]),
        hint="dla_policy prefer, or change these layers; the reasons are in the job's log",
    )


def _manifest(
    request: EngineRequest, ready: _Ready, asked: BuildRequest, made: TrtexecBuild | builder.PythonBuild, here: Target
) -> Manifest:
    source, plan, placement = load_onnx(request.onnx), read_plan(request.engine), made.log.placement
    version = plan.version or made.log.version or here.tensorrt
    quantization = {"qdq": "qdq", "calibrator": "calibrated", "calibration_cache": "calibrated"}
    return Manifest(
        **engine_entries(plan),
        **machine_entries(here),
        onnx_name=request.onnx.name,
        onnx_sha256=sha256_of(request.onnx),
        onnx_opset=opset_of(source),
        built_from=ready.built_from,
        tensorrt_version=version_text(version),
        builder="trtexec" if isinstance(made, TrtexecBuild) else "python",
        builder_banner=made.trtexec.build if isinstance(made, TrtexecBuild) else "",
        precision=asked.precision,
        device=request.wish.device if request.wish.device != "dla" else "dla0",
        workspace_mib=asked.workspace_mib,
        build_seconds=round(made.seconds, 3),
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=tuple(made.command),
        dla_layers=len(placement.dla_layers) if placement.source == "lists" else None,
        gpu_layers=len(placement.gpu_layers) if placement.source == "lists" else None,
        mixed_fp16=asked.mixed_fp16,
        sparse=asked.sparse,
        quantization=quantization.get(asked.int8_from or "", "none"),
        calibration_sha256=sha256_of(asked.calibration_cache) if asked.calibration_cache else None,
        strongly_typed=asked.strongly_typed,
        timing_cache=asked.timing_cache.name if asked.timing_cache else None,
        profile={one.name: _range(one) for one in asked.shapes},
        inputs=tuple(spec.as_dict() for spec in input_specs(source)),
        outputs=tuple(spec.as_dict() for spec in output_specs(source)),
        model={entry.key: entry.value for entry in source.metadata_props},
    )


def _range(one: InputShapes) -> dict[str, list[int]]:
    return {"min": list(one.minimum), "opt": list(one.optimum), "max": list(one.maximum)}


def _notes(request: EngineRequest, made: TrtexecBuild | builder.PythonBuild) -> tuple[str, ...]:
    notes = []
    if request.wish.precision == "int8" and not request.mixed_fp16:
        notes.append(
            "mixed_fp16 is false: layers without INT8 run in FP32, which is often slower than a plain FP16 engine"
        )
    if isinstance(made, TrtexecBuild):
        notes += made.trtexec.dialect.notes
    return tuple(notes)
