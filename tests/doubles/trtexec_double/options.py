"""The option parser of a release: what it accepts, warns of and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.doubles.trtexec_double import texts
from tests.doubles.trtexec_double.releases import Release

Values = dict[str, str]

INTEGERS = (
    *("useDLACore", "iterations", "duration", "warmUp", "avgRuns", "device", "builderOptimizationLevel"),
    *("maxAuxStreams", "streams", "infStreams", "maxTactics", "workspace"),
)


class Refused(Exception):
    """The command line is not taken; `texts` are printed as errors, after the help."""

    def __init__(self, *texts: str) -> None:
        super().__init__(*texts)
        self.texts = texts


@dataclass(frozen=True)
class Options:
    """Options without their dashes."""

    values: Values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The optimal shapes, or those that are filled in for them."""
        given = next((self.values[name] for name in ("optShapes", "shapes", "minShapes") if name in self.values), "")
        return dict(split_shapes(given))


def parse(arguments: Sequence[str], release: Release, cores: int, warn: Callable[[str], None]) -> Options:
    """Raises Refused. As in the genuine parser a wrong value is told alone, else every unknown option is."""
    values: Values = {}
    unknown: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        name = key.removeprefix("--")
        if key in release.flags and name not in values:
            values[name] = value
        else:
            unknown.append(f"Unknown option: {key} {value}")
    for severity, text in (told for rule in RULES for told in rule(values, release, cores)):
        if severity == "E":
            raise Refused(text)
        warn(text)
    if unknown:
        raise Refused(*unknown)
    return Options(values)


Told = Iterator[tuple[str, str]]
Rule = Callable[[Values, Release, int], Told]


def split_shapes(given: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`a:1x3,b:4`; the name ends at the last colon, and what has none is all name."""
    for part in filter(None, given.split(",")):
        name, colon, axes = part.rpartition(":")
        yield (name if colon else axes).strip("'"), tuple(map(int, axes.split("x"))) if colon else ()


def _deprecated(values: Values, release: Release, _cores: int) -> Told:
    for flag, since, text in texts.DEPRECATED:
        if flag in values and release.at_least(*since):
            yield "W", text


def _integers(values: Values, _release: Release, _cores: int) -> Told:
    for name in INTEGERS:
        text = values.get(name, "0")
        if not text.lstrip("+-")[:1].isdigit():
            yield "E", "stoi"


def _pools(values: Values, release: Release, _cores: int) -> Told:
    known = {"workspace", "dlaSRAM", "dlaLocalDRAM", "dlaGlobalDRAM"}
    known |= {"tacticSharedMem"} if release.at_least(10) else set()
    for part in values["memPoolSize"].split(",") if "memPoolSize" in values else ():
        pool, _, size = part.partition(":")
        if not size[:1].isdigit():
            yield "E", texts.STOD if release.at_least(10) else "stod"
        if pool not in known:
            yield "E", f"Unknown memory pool: {pool}"


def _shapes(values: Values, release: Release, _cores: int) -> Told:
    given = [name for name in ("minShapes", "optShapes", "maxShapes") if name in values]
    if release.at_least(8, 5):
        for source in given[:1] if len(given) == 1 else ():
            for name, _ in split_shapes(values[source]):
                for target in ("minShapes", "optShapes", "maxShapes"):
                    if target != source:
                        yield "W", f"{source} is being broadcasted to {target} for tensor {name}"
    elif given not in ([], ["optShapes"], ["minShapes", "optShapes", "maxShapes"]):
        yield "E", texts.SHAPES_8_2


def _sparsity(values: Values, release: Release, _cores: int) -> Told:
    mode = values.get("sparsity", "disable")
    if mode not in {"disable", "enable", "force"} and (mode or release.at_least(8, 5)):
        yield "E", f"Unknown sparsity mode: {mode}"
    if mode == "force" and release.at_least(10):
        yield "W", texts.SPARSITY_FORCE


def _compatibility(values: Values, release: Release, _cores: int) -> Told:
    known = ["none", "ampere+"] + (["sameComputeCapability"] if release.at_least(10, 9) else [])
    level = values.get("hardwareCompatibilityLevel", "none")
    if level not in known:
        yield "E", f"Unknown hardwareCompatibilityLevel: {level}. Valid options: {', '.join(known)}."


def _formats(values: Values, release: Release, _cores: int) -> Told:
    given = [part for name in ("inputIOFormats", "outputIOFormats") for part in values.get(name, "").split(",") if part]
    for part in given if release.at_least(11) else ():
        if ":" in part:
            yield "E", f"Invalid TensorFormat {part}"
    if "buildDLAStandalone" in values and any(part.endswith(":chw") for part in given):
        yield "E", texts.STANDALONE


def _tactics(values: Values, release: Release, _cores: int) -> Told:
    for part in values.get("tacticSources", "").split(",") if release.at_least(11) else ():
        if part and part.lstrip("+-") not in {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}:
            yield "E", f"Unknown tactic source: {part.lstrip('+-')}"


def _batch(values: Values, _release: Release, _cores: int) -> Told:
    if "onnx" in values and {"batch", "maxBatch"} & set(values):
        yield "E", texts.NO_BATCH


def _typing(values: Values, release: Release, _cores: int) -> Told:
    for name, constant in (("fp16", "kFP16"), ("int8", "kINT8")):
        if "stronglyTyped" in values and name in values:
            yield "W", texts.STRONGLY_TYPED.format(name, constant)
    constrained = values.get("precisionConstraints") in {"obey", "prefer"}
    if constrained and release.at_least(8, 5) and not {"layerPrecisions", "layerOutputTypes"} & set(values):
        yield "W", texts.CONSTRAINTS


def _verbosity(values: Values, _release: Release, _cores: int) -> Told:
    if "verbose" in (values.get("profilingVerbosity"), values.get("nvtxMode")):
        yield "W", "--profilingVerbosity=verbose has been deprecated by --profilingVerbosity=detailed."


def _runtime(values: Values, _release: Release, _cores: int) -> Told:
    runtime = values.get("useRuntime", "full")
    if runtime != "full":
        yield "W", f"Implicitly enabling --versionCompatible since --useRuntime={runtime} is set."
        yield "E", "Building a TensorRT engine requires --useRuntime=full."
    if "cpuOnly" in values and "safe" not in values:
        yield "E", "CPU-only mode (--cpuOnly) requires --safe flag to be enabled."


def _dla(values: Values, release: Release, cores: int) -> Told:
    if release.at_least(11) and int(values.get("useDLACore", "-1")) >= 0:
        yield "W", texts.NO_GRAPH_ON_DLA
    for name in ("reportCapabilityDLA", "uint8AsymmetricQuantizationDLA"):
        if name in values and not cores:
            yield "E", f"--{name} is not supported without DLA cores."
    if "adjustForDLA" in values and not cores:
        yield "W", texts.ADJUST_FOR_DLA


RULES: tuple[Rule, ...] = (
    _deprecated,
    _integers,
    _pools,
    _shapes,
    _sparsity,
    _compatibility,
    _formats,
    _tactics,
    _batch,
    _typing,
    _verbosity,
    _runtime,
    _dla,
)
