"""What differs between TensorRT's releases as trtexec shows it: one table, so that nothing else asks for a version.

Four dialects: 8.2 (Jetson Nano), 8.4 and 8.5 (JetPack 5), 8.6 to 10.x, 11.x. Within one a few facts changed with a
later release; those are rows of the table too.

Sources: the option parsers of trtexec 8.2.3, 8.5.3, 8.6.1, 10.3.0, 10.16.0, 11.0.0 and 11.1.0, which were built from
NVIDIA's sources and asked; NVIDIA's migration guide from 10.x to 11.x; its DLA pages for 11.0 to 11.4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.toolkit.errors import InvalidBuild, ReleaseUnsupported
from app.toolkit.tensorrt.request import BuildRequest
from app.toolkit.tensorrt.versions import Version, version_text

StrongTyping = Literal["no", "flag", "always"]

OLDEST: Version = (8, 2, 0)
NEWEST_CHECKED: Version = (11, 1, 0)
"""The newest release whose option parser was asked. Later ones are taken to speak as it does, with a note."""


@dataclass(frozen=True)
class Dialect:
    """How one release of trtexec wants to be spoken to, and what it can do.

    `precision_flags`: it has --fp16, --int8 and --calib; without them the ONNX's own types are the precision.
    `strong_typing`: whether those types can be made binding, and how. `dla_takes_types`: on a DLA too, Q/DQ included.
    `cache_locked`: it locks the timing cache itself. `plan_header`: its engines begin with a header that names the
    release. `notes` are for whoever reads the result.
    """

    name: str
    version: Version
    workspace: str
    build_only: str
    precision_flags: bool = True
    strong_typing: StrongTyping = "no"
    dla: bool = True
    dla_takes_types: bool = False
    cache_locked: bool = True
    plan_header: bool = True
    notes: tuple[str, ...] = ()

    @property
    def release(self) -> str:
        """`8.5.3`."""
        return version_text(self.version)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "version": self.release, "notes": list(self.notes)}


_8_2 = Dialect("8.2", (8, 2, 0), "--workspace={mib}", "--buildOnly", cache_locked=False, plan_header=False)
_8_4 = replace(_8_2, name="8.5", version=(8, 4, 0), workspace="--memPoolSize=workspace:{mib}", cache_locked=True)
_8_6 = replace(_8_4, name="8.6 to 10.x", version=(8, 6, 0), build_only="--skipInference", plan_header=True)
_10 = replace(_8_6, version=(10, 0, 0), strong_typing="flag")
_11 = replace(_10, name="11.x", version=(11, 0, 0), precision_flags=False, strong_typing="always", dla=False)
# What INT8 on the DLA of 11.4.1 takes is not published; Q/DQ is the only INT8 that 11 has, so it is tried.
_11_4_1 = replace(_11, version=(11, 4, 1), dla=True, dla_takes_types=True)

TABLE = (_8_2, _8_4, _8_6, _10, _11, _11_4_1)
"""Each row holds from its version on, until the next."""


def decode_version(banner: str) -> Version:
    """The number in trtexec's banner: `8502` is 8.5.2, `100300` is 10.3.0.

    Until 9.x it is major * 1000 + minor * 100 + patch, from 10 on major * 10000 (NvInferVersion.h).
    """
    number = int(banner)
    major, rest = divmod(number, 1000) if len(banner) <= 4 else divmod(number, 10000)
    return major, rest // 100, rest % 100


def dialect_of(version: Version) -> Dialect:
    """The dialect of a release, bound to it. A release newer than what was checked gets a note; trtexec refuses an
    option that it does not know, so a wrong guess is loud.

    Raises ReleaseUnsupported for one before 8.2.
    """
    if version < OLDEST:
        raise ReleaseUnsupported(
            f"TensorRT {version_text(version)} is too old",
            expected=f"TensorRT {OLDEST[0]}.{OLDEST[1]} or newer",
            received=version_text(version),
            hint="a Jetson has 8.2.1 from JetPack 4.6.1 on; elsewhere install TensorRT 8.6 or 10",
        )
    row = [one for one in TABLE if one.version <= version][-1]
    return replace(row, version=version, notes=_notes(version))


def _notes(version: Version) -> tuple[str, ...]:
    if version[:2] <= NEWEST_CHECKED[:2]:
        return ()
    newest = version_text(NEWEST_CHECKED[:2])
    return (f"the options of TensorRT {version_text(version)} were not checked: it is spoken to as {newest}",)


def command_line(request: BuildRequest, dialect: Dialect) -> list[str]:
    """trtexec's arguments, without the executable. Raises InvalidBuild, CalibrationMissing, ReleaseUnsupported."""
    request.check()
    refuse_what_is_missing(request, dialect)
    if request.int8_from == "calibrator":
        raise InvalidBuild(
            "trtexec cannot calibrate",
            expected="a calibration cache of an earlier build, or a Q/DQ ONNX",
            received="calibration images",
            hint="install TensorRT's Python package here, which can; or quantise the ONNX first",
        )
    return [
        f"--onnx={request.onnx}",
        f"--saveEngine={request.engine}",
        dialect.workspace.format(mib=request.workspace_mib),  # a bare number is MiB everywhere; suffixes are not
        *([f"--timingCacheFile={request.timing_cache}"] if request.timing_cache else []),
        *_precision(request, dialect),
        *_dla(request),
        *(["--sparsity=enable"] if request.sparse else []),
        *_shapes(request),
        dialect.build_only,
    ]


def _precision(request: BuildRequest, dialect: Dialect) -> Iterator[str]:
    if not dialect.precision_flags:
        return
    if request.strongly_typed:
        yield "--stronglyTyped"
        return
    if request.precision == "int8":
        yield "--int8"
        if request.calibration_cache is not None:
            yield f"--calib={request.calibration_cache}"
    if request.precision == "fp16" or request.mixed_fp16:
        yield "--fp16"


def _dla(request: BuildRequest) -> Iterator[str]:
    if request.dla_core is None:
        return
    yield f"--useDLACore={request.dla_core}"
    if request.gpu_fallback:
        yield "--allowGPUFallback"


def _shapes(request: BuildRequest) -> Iterator[str]:
    """All three or none: 8.2 refuses less than three, later releases fill in what is missing with a warning."""
    if not request.shapes:
        return
    for flag, of in (("--minShapes", "minimum"), ("--optShapes", "optimum"), ("--maxShapes", "maximum")):
        values = (f"{one.name}:{'x'.join(map(str, getattr(one, of)))}" for one in request.shapes)
        yield f"{flag}={','.join(values)}"


def refuse_what_is_missing(request: BuildRequest, dialect: Dialect) -> None:
    """Raises ReleaseUnsupported for what the release does not have, whichever way the engine is built."""
    for applies, message, expected, hint in _missing(request, dialect):
        if applies:
            raise ReleaseUnsupported(
                f"TensorRT {dialect.release} {message}", expected=expected, received=request.summary(), hint=hint
            )


def _missing(request: BuildRequest, dialect: Dialect) -> tuple[tuple[bool, str, str, str], ...]:
    """(whether it applies, message, expected, hint), the plainest first."""
    on_dla, qdq, typed = request.dla_core is not None, request.int8_from == "qdq", request.strongly_typed
    no_flags = not dialect.precision_flags
    return (
        (
            on_dla and not dialect.dla,
            "has no DLA",
            "up to 10.x, or 11.4.1 and newer on a Jetson AGX Orin",
            "build for the GPU",
        ),
        (
            typed and dialect.strong_typing == "no",
            "cannot take an ONNX's own types as binding",
            "TensorRT 10 or newer",
            "let it choose the precision by its flags",
        ),
        (
            no_flags and request.precision == "fp16" and not typed,
            "has no --fp16: the precision is in the ONNX",
            "an ONNX cast to FP16, strongly typed",
            "cast the ONNX to FP16 first",
        ),
        (
            no_flags and request.precision == "int8" and not qdq,
            "has no calibration: INT8 is in the ONNX",
            "a Q/DQ ONNX",
            "quantise the ONNX to Q/DQ first",
        ),
        (
            no_flags and request.mixed_fp16,
            "has no --fp16 to mix in: the precision is in the ONNX",
            "a Q/DQ ONNX whose other layers are FP16",
            "cast the rest of the Q/DQ ONNX to FP16, without mixed_fp16",
        ),
        (
            on_dla and (qdq or typed) and not dialect.dla_takes_types,
            "takes neither Q/DQ nor an ONNX's own types on a DLA",
            "FP16 by its flag, INT8 by calibration",
            "give the FP32 ONNX, for INT8 with calibration images or a cache; or build for the GPU",
        ),
    )
