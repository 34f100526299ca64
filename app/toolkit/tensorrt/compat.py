"""Will an engine load on a machine, and why not: from its header and its manifest, before anything tries.

A check answers True, False, or None for "cannot tell": what neither file says is never taken for a yes.

Rules: NVIDIA's support matrix and engine compatibility pages (11.4.1). The version must match in all four parts; built
VERSION_COMPATIBLE (8.6 on), newer releases load it too, across majors only 8 to 10 and 10 to 11. The compute capability
must be the same, or the hardware compatibility level must allow another. Texts in quotation marks are TensorRT's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.toolkit.tensorrt.manifest import Manifest
from app.toolkit.tensorrt.plan import Plan
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import Version, version_of, version_text

NEWER_MAJORS = {(8, 10), (10, 11)}
"""From which major to which a version-compatible engine may go."""

VERSION_PARTS = 4
AMPERE = (8, 0)
OTHER_MODEL_REFUSED: Version = (10, 16)
"""From here on TensorRT's text says "not supported" of an engine from another GPU model, before "not recommended"."""


@dataclass(frozen=True)
class Check:
    """One condition. `loads` is None where it cannot be told."""

    about: str
    loads: bool | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return dict(vars(self))


@dataclass(frozen=True)
class Compatibility:
    """All conditions of one engine on one machine; `notes` are what to mind besides."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def loads(self) -> bool | None:
        """False as soon as one condition fails; True only if all are known to hold."""
        answers = {check.loads for check in self.checks}
        return next((answer for answer in (False, None) if answer in answers), True)

    @property
    def verdict(self) -> str:
        """One sentence: the first reason why not, else the first thing that is not known."""
        if self.loads is True:
            return "loads: " + ", ".join(check.why for check in self.checks)
        first = next(check.why for check in self.checks if check.loads is self.loads)
        return f"does not load: {first}" if self.loads is False else f"cannot tell: {first}"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "loads": self.loads,
            "verdict": self.verdict,
            "checks": [check.as_dict() for check in self.checks],
            "notes": list(self.notes),
        }


def compatibility(plan: Plan, manifest: Manifest | None, target: Target) -> Compatibility:
    """Compare an engine with a machine. A manifest that does not fit the engine's header is left aside."""
    notes = []
    if manifest is not None and not _belongs(manifest, plan):
        notes.append("the manifest beside the engine is another engine's: it was left aside")
        manifest = None
    if plan.offset:
        notes.append(
            f"the file begins with {plan.offset} bytes of Ultralytics: Ultralytics loads it, while trtexec and "
            'TensorRT itself say "Magic tag does not match" until they are stripped'
        )
    if manifest is not None and manifest.version_compatible:
        notes.append("a version-compatible engine loads only with runtime.engine_host_code_allowed = True")
    checks = (
        _version(plan, manifest, target),
        _platform(manifest, target),
        _compute_capability(manifest, target),
        *_model(manifest, target),
        *_dla(manifest, target),
    )
    return Compatibility(checks, tuple(notes))


def _belongs(manifest: Manifest, plan: Plan) -> bool:
    if manifest.engine_size_bytes != plan.size_bytes:
        return False
    parts = manifest.version
    return plan.version is None or parts is None or plan.version[: len(parts)] == parts


# -- the version ----------------------------------------------------------------------------------------------------
def _version(plan: Plan, manifest: Manifest | None, target: Target) -> Check:
    about = "TensorRT version"
    built = plan.version or (manifest.version if manifest else None)
    if built is None:
        return Check(about, None, "the header names no TensorRT version, as none before 8.6 does, and no manifest does")
    if target.tensorrt is None:
        return Check(about, None, f"built with TensorRT {version_text(built)}, which one is there is not known")
    both = f"built with TensorRT {version_text(built)}, here is {version_text(target.tensorrt)}"
    shared = min(len(built), len(target.tensorrt))
    if built[:shared] == target.tensorrt[:shared]:
        if shared == VERSION_PARTS:
            return Check(about, True, f"TensorRT {version_text(built)} on both sides")
        return Check(about, None, f"{both}: the same as far as both are known, the build number must match too")
    compatible = None if manifest is None else manifest.version_compatible
    return _other_version(about, both, built, target.tensorrt, compatible, manifest)


def _other_version(
    about: str, both: str, built: Version, here: Version, compatible: bool | None, manifest: Manifest | None
) -> Check:
    source = manifest.onnx_name if manifest else "its ONNX"
    rebuild = f"rebuild from {source} with TensorRT {version_text(here)}"
    may_go = here > built and (here[0] == built[0] or (built[0], here[0]) in NEWER_MAJORS)
    if compatible and may_go:
        return Check(about, True, f"{both}, and it was built version-compatible")
    if compatible:
        reach = "newer releases of the same major, 8 to 10 and 10 to 11"
        return Check(about, False, f"{both}: a version-compatible engine goes to {reach} only; {rebuild}")
    only = "an engine loads only in the version that built it"
    if not may_go or built < (8, 6):
        return Check(about, False, f"{both}: {only}; {rebuild}")
    if compatible is None:
        unless = "unless it was built version-compatible, which a header does not tell"
        return Check(about, None, f"{both}: {only}, {unless}; {rebuild} to be sure")
    return Check(about, False, f"{both}: {only}; {rebuild}, or build with version_compatible")


# -- the machine ----------------------------------------------------------------------------------------------------
def _platform(manifest: Manifest | None, target: Target) -> Check:
    about = "platform"
    built = (manifest.os, manifest.arch) if manifest else (None, None)
    here = (target.os, target.arch)
    differ = [(ours, theirs) for ours, theirs in zip(built, here, strict=True) if ours and theirs and ours != theirs]
    if differ:
        ours, theirs = differ[0]
        return Check(about, False, f"built on {ours}, here is {theirs}: an engine runs on the platform that built it")
    if None in built:
        return Check(about, None, "where it was built is not known")
    if None in here:
        return Check(about, None, f"built on {' '.join(filter(None, built))}, the target's platform is not known")
    return Check(about, True, f"{built[0]} {built[1]} on both sides")


def _compute_capability(manifest: Manifest | None, target: Target) -> Check:
    about = "compute capability"
    built = version_of(manifest.compute_capability) if manifest and manifest.compute_capability else None
    here = target.compute_capability
    if built is None or manifest is None:
        return Check(about, None, "which GPU it was built on is not known")
    if here is None:
        return Check(about, None, f"built for compute capability {version_text(built)}, the target's is not known")
    if built == here:
        return Check(about, True, f"compute capability {version_text(built)} on both sides")
    both = f"built for compute capability {version_text(built)}, here is {version_text(here)}"
    if manifest.hardware_compatibility == "ampere_plus":
        return _ampere_plus(about, both, here, manifest.l4t == "" and target.l4t == "")
    return Check(about, False, f"{both}: build it on a GPU of {version_text(here)}")


def _ampere_plus(about: str, both: str, here: tuple[int, int], no_jetson: bool) -> Check:
    if here < AMPERE:
        return Check(about, False, f"{both}: its hardware compatibility begins with Ampere (8.0)")
    if not no_jetson:
        return Check(about, None, f"{both}: built for Ampere and later, of which nothing is known for Jetson")
    return Check(about, True, f"{both}, and it was built for Ampere and later")


def _model(manifest: Manifest | None, target: Target) -> Iterator[Check]:
    """Another model of the same compute capability, which TensorRT minds unless it was built for that."""
    if manifest is None or manifest.hardware_compatibility != "none":
        return
    built, here = manifest.gpu_name, target.gpu_name
    about = "GPU model"
    if built is None or here is None:
        yield Check(about, None, f"built on {built or 'an unknown GPU'}, here is {here or 'an unknown GPU'}")
        return
    if built == here:
        yield Check(about, True, f"{built} on both sides")
        return
    both = f"built on {built}, here is {here}"
    if manifest.sm_count and target.sm_count and target.sm_count < manifest.sm_count:
        yield Check(
            about,
            False if _refuses_models(target) else None,
            f"{both}: it uses {manifest.sm_count} multiprocessors, {target.sm_count} are there",
        )
    elif _refuses_models(target):
        yield Check(about, None, f'{both}: "not supported and is likely to affect performance or even cause errors"')
    else:
        yield Check(about, True, f'{both}: "not recommended and is likely to affect performance"')


def _refuses_models(target: Target) -> bool:
    return target.tensorrt is None or target.tensorrt >= OTHER_MODEL_REFUSED


def _dla(manifest: Manifest | None, target: Target) -> Iterator[Check]:
    if manifest is None:
        yield Check("DLA", None, "whether it needs a DLA core is not known")
        return
    if not manifest.device.startswith("dla"):
        return
    cores = target.dla_cores
    if cores is None:
        yield Check("DLA", None, f"built for {manifest.device}, how many DLA cores are there is not known")
    elif cores == 0:
        yield Check("DLA", False, f"built for {manifest.device}, this machine has no DLA core; rebuild it for the GPU")
    elif int(manifest.device[3:] or 0) >= cores:
        yield Check("DLA", True, f"built for {manifest.device} of {cores} core(s) here: set runtime.DLA_core = 0")
    else:
        yield Check("DLA", True, f"{manifest.device} is one of {cores} core(s) here")
