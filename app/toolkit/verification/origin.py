"""Where the two models come from, for a report: files, digests, versions, and when the candidate was exported."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import PurePosixPath

from app.toolkit.runtimes.ort_runtime import CPU, OrtRuntime
from app.toolkit.tensorrt.manifest import sha256_of
from app.toolkit.verification.facts import Side
from app.toolkit.verification.request import Device, VerifyRequest
from app.toolkit.verification.subject import Subject

VERSIONED = re.compile(r"-(\d{8}-\d{6})-([0-9a-f]{7,40}|nogit)\.[a-z]+$")
"""S4 E-1's names: `detection-20250810-143012-ab12cd3.onnx`."""

REPORTED = ("torch", "onnx", "onnxruntime", "ultralytics", "timm", "numpy", "faster-coco-eval")


def side(subject: Subject, request: VerifyRequest, index: int, input_size: tuple[int, int]) -> Side:
    """A model's facts; `index` is 0 for the reference, 1 for the candidate; compared at `input_size`, (H, W) in px."""
    model, runtime, about = subject.model, subject.runtime, subject.about
    return Side(
        path=called(subject, request, index),
        sha256=sha256_of(subject.path),
        size_bytes=subject.path.stat().st_size,
        format=subject.format,
        dtype=subject.dtype,
        family=model.family,
        task=model.task,
        runtime=runtime.name,
        preprocessing=subject.preprocessing.as_dict(),
        input_shape=tuple(
            free if isinstance(axis, str) else axis
            for axis, free in zip(runtime.inputs[0].shape, (1, model.channels, *input_size), strict=True)
        ),
        input_axes=runtime.inputs[0].shape,
        backbone=about.get("backbone"),
        num_classes=len(model.names) or None,
        params=about.get("params"),
        opset=about.get("opset"),
        dynamic_axes=about.get("dynamic_axes"),
        device=_device(subject, request.devices[index]),
        providers=getattr(runtime, "used_providers", ()),
        provider_options=getattr(runtime, "provider_options", {}),
        providers_refused=getattr(runtime, "refused", {}),
    )


def _device(subject: Subject, asked: Device) -> Device:
    """Where it ran: ONNX Runtime may have fallen back to the CPU, and an engine knows only the GPU."""
    if isinstance(subject.runtime, OrtRuntime):
        return "cpu" if subject.runtime.used_providers[0] == CPU else "cuda"
    return "cuda" if subject.format == "engine" else asked


def called(subject: Subject, request: VerifyRequest, index: int) -> str:
    """What the report calls a model: the request's word, else its path."""
    return str(subject.path.resolve()) if request.names is None else request.names[index]


def exported_at(candidate: Subject, request: VerifyRequest) -> datetime | None:
    """By the versioned name, else by the file's own date, else unknown: a staged copy's age says nothing."""
    named = _named(candidate, request)
    try:
        if named is not None:
            return datetime.strptime(named[1], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        stated = datetime.fromisoformat(str(candidate.about.get("exported_at")))
    except ValueError:
        return None
    return stated if stated.tzinfo else stated.astimezone()


def git_sha_of(candidate: Subject, request: VerifyRequest) -> str:
    """By the versioned name, else as the request says."""
    named = _named(candidate, request)
    return named[2] if named is not None else request.git_sha


def _named(candidate: Subject, request: VerifyRequest) -> re.Match[str] | None:
    return VERSIONED.search(PurePosixPath(called(candidate, request, 1)).name)


def versions() -> dict[str, str]:
    """Of the libraries that took part."""
    return {name: version(name) for name in REPORTED}
