"""Which images prove a quantisation: none that calibrated it, by content and not by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.toolkit.calibration.images import CalibrationImages, choose_images
from app.toolkit.coco import CocoData
from app.toolkit.quantization.request import QuantizationRequest

HELD_OUT_IMAGES = 200
"""Unlabelled images of a proof, where there are so many: fewer cannot settle a hundredth (docs/measured.md)."""


@dataclass(frozen=True)
class ProofImages:
    """Labelled images, or images alone, or neither."""

    images: tuple[Path, ...] = ()
    data: CocoData | None = None
    warnings: tuple[str, ...] = ()


def held_out(request: QuantizationRequest, images: CalibrationImages | None) -> ProofImages:
    """The request's `data`, else its `proof_images`, else what the calibration's folder had left.

    Raises NoImages where `proof_images` holds none that can be read.
    """
    calibrated = frozenset(images.digests if images is not None and request.mode == "static" else ())
    if request.data is not None:
        return _labelled(request.data, calibrated)
    if request.proof_images is not None:
        count = request.proof_sample or HELD_OUT_IMAGES
        found = choose_images(request.proof_images, count=count, workers=request.threads).calibration
        kept = tuple(path for path in found if _digest(path) not in calibrated)
        return ProofImages(kept, warnings=_overlap(len(found) - len(kept)))
    if images is None:
        return ProofImages()
    return ProofImages(images.calibration if request.mode == "dynamic" else images.held_out)


def _labelled(data: CocoData, calibrated: frozenset[str]) -> ProofImages:
    kept = [index for index, name in enumerate(data.file_names) if _digest(data.images / name) not in calibrated]
    warnings = _overlap(len(data.file_names) - len(kept))
    if not kept:
        return ProofImages(warnings=warnings)
    return ProofImages(data=_chosen(data, kept), warnings=warnings)


def _chosen(data: CocoData, indices: Sequence[int]) -> CocoData:
    return replace(
        data,
        image_ids=tuple(data.image_ids[index] for index in indices),
        file_names=tuple(data.file_names[index] for index in indices),
    )


def _overlap(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} images of the proof calibrated the model too and were left out of the proof",)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
