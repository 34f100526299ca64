"""What an engine is to be, said once for trtexec and for the Python builder, and what cannot be asked of any TensorRT.

What only some releases lack is refused by `dialects`, which knows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.toolkit.errors import CalibrationMissing, EmptyFile, FileMissing, InvalidBuild

Precision = Literal["fp32", "fp16", "int8"]
Int8Source = Literal["calibration_cache", "qdq", "calibrator"]

DEFAULT_WORKSPACE_MIB = 2048
CACHE_BEGINS = re.compile(rb"TRT-[0-9]+-\w*Calibration")
"""The first line of a calibration cache: `TRT-8503-EntropyCalibration2`."""
NOT_IN_NAMES = frozenset(",='\"")
"""trtexec splits its shapes at the first and strips quotes; no escape is known."""


@dataclass(frozen=True)
class InputShapes:
    """The optimisation profile of one dynamic input: the smallest, the most likely and the largest shape."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    @property
    def fixed(self) -> bool:
        """Whether only one shape is allowed."""
        return self.minimum == self.optimum == self.maximum

    def check(self) -> None:
        """Raises InvalidBuild. trtexec looks at none of this: it builds another engine, or fails minutes later."""
        columns = list(zip(self.minimum, self.optimum, self.maximum, strict=False))
        same_rank = len(self.minimum) == len(self.optimum) == len(self.maximum) > 0
        if not same_rank or not all(1 <= low <= most <= high for low, most, high in columns):
            raise InvalidBuild(
                f"the shapes of input {self.name} are no range",
                expected="three shapes of one rank, each axis 1 <= minimum <= optimum <= maximum",
                received=f"{self.minimum}, {self.optimum}, {self.maximum}",
            )
        if not self.name or NOT_IN_NAMES & set(self.name):
            raise InvalidBuild(
                "trtexec cannot be told the shapes of an input of this name",
                expected="a name without commas, equals signs and quotes",
                received=repr(self.name),
                hint="rename the input, or export the ONNX with a static shape",
            )


@dataclass(frozen=True)
class BuildRequest:
    """One engine.

    `dla_core` None is the GPU; `gpu_fallback` lets what a DLA cannot take run on the GPU. `int8_from` says where INT8's
    ranges come from: a cache of an earlier calibration, Q/DQ nodes in the ONNX, or calibration by the Python builder.
    `mixed_fp16` lets TensorRT run in FP16 what INT8 does not suit. `strongly_typed`: the ONNX's own types (cast to
    FP16, or Q/DQ) are the precision, and bind. `shapes` has one entry for each dynamic input, none for a static ONNX.
    """

    onnx: Path
    engine: Path
    precision: Precision = "fp32"
    dla_core: int | None = None
    gpu_fallback: bool = True
    int8_from: Int8Source | None = None
    calibration_cache: Path | None = None
    mixed_fp16: bool = False
    sparse: bool = False
    strongly_typed: bool = False
    workspace_mib: int = DEFAULT_WORKSPACE_MIB
    shapes: tuple[InputShapes, ...] = ()
    timing_cache: Path | None = None

    def check(self) -> None:
        """Raises InvalidBuild or CalibrationMissing. Reads no file."""
        self._check_int8()
        self._check_dla()
        self._check_typing()
        for one in self.shapes:
            one.check()
        names = [one.name for one in self.shapes]
        if len(set(names)) < len(names):
            raise InvalidBuild("an input has two ranges of shapes", expected="one each", received=", ".join(names))
        if self.workspace_mib < 1:
            raise InvalidBuild(
                "the workspace is too small", expected="1 MiB or more", received=f"{self.workspace_mib} MiB"
            )

    def check_files(self) -> None:
        """Raises FileMissing, EmptyFile or CalibrationMissing. A calibration cache that trtexec cannot read is not an
        error to it: it calibrates on random numbers."""
        _present(self.onnx)
        if self.calibration_cache is None:
            return
        _present(self.calibration_cache)
        with self.calibration_cache.open("rb") as file:
            begins = file.readline(200)
        if not CACHE_BEGINS.match(begins):
            raise CalibrationMissing(
                f"{self.calibration_cache.name} is no calibration cache",
                expected="a first line such as TRT-8503-EntropyCalibration2",
                received=repr(begins[:40]),
            )

    def summary(self) -> str:
        """`int8 from qdq on DLA core 0`."""
        source = f" from {self.int8_from}" if self.int8_from else ""
        extras = (" mixed with fp16" if self.mixed_fp16 else "") + (", strongly typed" if self.strongly_typed else "")
        place = "the GPU" if self.dla_core is None else f"DLA core {self.dla_core}"
        return f"{self.precision}{source}{extras} on {place}"

    def _check_int8(self) -> None:
        if self.precision != "int8":
            if self.int8_from or self.calibration_cache or self.mixed_fp16:
                raise InvalidBuild(
                    f"{self.precision} takes no calibration and mixes nothing in",
                    expected="precision int8",
                    received=self.summary(),
                )
            return
        if self.int8_from is None or (self.int8_from == "calibration_cache") != (self.calibration_cache is not None):
            raise CalibrationMissing(
                "INT8 needs to be told its ranges",
                expected="calibration images, a calibration cache, or an ONNX with Q/DQ nodes",
                received=self.summary() if self.int8_from else "none of them",
                hint="TensorRT would invent ranges, and report success",
            )

    def _check_dla(self) -> None:
        if self.dla_core is None:
            return
        if self.dla_core < 0:
            raise InvalidBuild("a DLA core is counted from 0", expected="0 or more", received=str(self.dla_core))
        if self.precision == "fp32":
            raise InvalidBuild("a DLA does not compute in FP32", expected="fp16 or int8", received="fp32")
        moving = [one.name for one in self.shapes if not one.fixed]
        if moving:
            raise InvalidBuild(
                "a DLA takes static shapes only",
                expected="a static ONNX, or minimum, optimum and maximum alike",
                received=f"dynamic {', '.join(moving)}",
                hint="export the ONNX without dynamic axes",
            )

    def _check_typing(self) -> None:
        if not self.strongly_typed:
            return
        if self.mixed_fp16 or self.int8_from in {"calibration_cache", "calibrator"}:
            raise InvalidBuild(
                "a strongly typed ONNX has its precision in itself",
                expected="an ONNX cast to FP16, or with Q/DQ nodes, and neither calibration nor mixed_fp16",
                received=self.summary(),
            )


def _present(path: Path) -> None:
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a file", received=str(path))
    if not path.stat().st_size:
        raise EmptyFile(f"{path.name} is empty", expected="a file with content", received="0 bytes")
