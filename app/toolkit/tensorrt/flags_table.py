"""trtexec's flags by release, as a table for the documentation: made by `command_line`, so that it cannot be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.toolkit.errors import ReleaseUnsupported
from app.toolkit.tensorrt.dialects import TABLE, Dialect, command_line
from app.toolkit.tensorrt.request import BuildRequest, InputShapes

PLAIN = BuildRequest(Path("MODEL.onnx"), Path("MODEL.engine"))
IMAGES = InputShapes("images", (1, 3, 320, 320), (1, 3, 640, 640), (4, 3, 1280, 1280))
CACHE = Path("CALIB.cache")

WISHES = {
    "every build": PLAIN,
    "a timing cache": replace(PLAIN, timing_cache=Path("TIMING.cache")),
    "FP16": replace(PLAIN, precision="fp16"),
    "FP16, an ONNX cast to it": replace(PLAIN, precision="fp16", strongly_typed=True),
    "INT8, a calibration cache": replace(
        PLAIN, precision="int8", int8_from="calibration_cache", calibration_cache=CACHE
    ),
    "INT8, a Q/DQ ONNX": replace(PLAIN, precision="int8", int8_from="qdq"),
    "INT8, a Q/DQ ONNX, its types binding": replace(PLAIN, precision="int8", int8_from="qdq", strongly_typed=True),
    "INT8 and FP16, a calibration cache": replace(
        PLAIN, precision="int8", int8_from="calibration_cache", calibration_cache=CACHE, mixed_fp16=True
    ),
    "DLA core 0, FP16": replace(PLAIN, precision="fp16", dla_core=0),
    "DLA core 0, FP16, an ONNX cast to it": replace(PLAIN, precision="fp16", dla_core=0, strongly_typed=True),
    "sparse weights": replace(PLAIN, sparse=True),
    "a dynamic input": replace(PLAIN, shapes=(IMAGES,)),
}


def flags_table() -> str:
    """Markdown: a row for each wish, a column for each row of `dialects.TABLE`."""
    names = [_column(number) for number in range(len(TABLE))]
    lines = ["| for | " + " | ".join(names) + " |", "|---" * (len(TABLE) + 1) + "|"]
    for wish, request in WISHES.items():
        lines.append("| " + " | ".join([wish, *(_cell(request, row) for row in TABLE)]) + " |")
    return "\n".join(lines)


def _column(number: int) -> str:
    begins = TABLE[number].release.removesuffix(".0")
    return f"from {begins}"


def _cell(request: BuildRequest, dialect: Dialect) -> str:
    """What the request adds to the plain command line."""
    try:
        words = command_line(request, dialect)
    except ReleaseUnsupported:
        return "refused"
    if request != PLAIN:
        words = [word for word in words if word not in command_line(PLAIN, dialect)]
    return " ".join(f"`{word}`" for word in words) or "in the ONNX"
