"""NVIDIA's genuine Python bindings, asked for every name that our code and the double use.

Each release's wheel is installed into a folder of its own, with stand-ins for the libraries that it needs, and imported
in a process of its own. Skipped where a wheel or a compiler cannot be had; in CI it must be there.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from app.toolkit.tensorrt.api import NAMES
from app.toolkit.tensorrt.versions import Version, version_of
from tests.doubles.nvinfer_standins import TOOLS, make_standins
from tests.doubles.tensorrt.releases import names_of
from tests.toolkit.trt import write_onnx

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "tests" / "assets" / "trt" / "bindings"
NEWEST_PYTHON = {"8.6.1": (3, 11), "10.3.0": (3, 12), "10.16.1.11": (3, 13), "11.4.0.106": (3, 13)}
"""The last CPython for which there is a wheel whose digest is written down."""
INSTALL_SEC = 240

WALK = """
import importlib, json, sys
module = importlib.import_module("tensorrt_bindings")
def number(path):
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return int(found) if type(found).__name__ in ENUMS else None
ENUMS = {name for name in dir(module)} | {"Severity"}
told = {}
for path in json.load(sys.stdin):
    try:
        told[path] = number(path)
    except AttributeError as error:
        told[path] = str(error)
    except TypeError:
        told[path] = None
print(json.dumps({"version": module.__version__, "names": told}))
"""

USE = """
import json, sys, tensorrt_bindings as module
from pathlib import Path
from app.toolkit.tensorrt.api import missing_names, open_api
from app.toolkit.tensorrt.builder import build
from app.toolkit.tensorrt.calibrator import BASES, Calibration, Feed, calibrator
from app.toolkit.tensorrt.callbacks import Guard, listening, monitor
from app.toolkit.tensorrt.errors import CudaUnusable
from app.toolkit.tensorrt.request import BuildRequest

api, guard, lines, made = open_api(module), Guard(), [], []
with listening(api, lines.append, guard) as logger:
    logger.log(module.ILogger.Severity.WARNING, "one\\ntwo")
    logger.log(module.ILogger.Severity.VERBOSE, "three")
if api.has("IProgressMonitor"):
    made.append(monitor(api, guard, print, lambda: True).step_complete("build", 1))
for method in BASES:
    if api.has(BASES[method]):
        given = Calibration((), 4, method=method, memory=lambda: None)
        feed = Feed(given, (4, 3, 8, 8), should_stop=lambda: False, say=print)
        made.append(calibrator(api, feed, given, guard).get_batch_size())
try:
    build(BuildRequest(Path(sys.argv[1]), Path(sys.argv[2])), module=module)
except CudaUnusable as error:
    made.append(error.received)
print(json.dumps({"missing": missing_names(module, api.version), "lines": lines, "made": made}))
"""

pytestmark = pytest.mark.slow


def give_up(reason: str) -> NoReturn:
    """A test that cannot run is skipped, in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def install(release: str, folder: Path) -> None:
    """The wheel whose digest is written down, and the stand-ins beside it."""
    if sys.version_info[:2] > NEWEST_PYTHON[release] or platform.machine() != "x86_64":
        pytest.skip(f"there is no wheel of {release} for this Python and machine")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        give_up(f"the stand-ins need {', '.join(missing)}")
    words = ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(folder)]
    words += ["-r", str(REQUIREMENTS / f"{release}.txt"), "--python", sys.executable]
    command = ["bash", str(ROOT / "scripts" / "uv.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SEC, check=False)
    if done.returncode != 0:
        give_up(f"the wheel of {release} cannot be had:\n{(done.stdout + done.stderr)[-1000:]}")
    make_standins(folder)


@pytest.fixture(scope="module", params=NEWEST_PYTHON)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Path]:
    """(the release, the folder that holds it)."""
    folder = tmp_path_factory.mktemp("bindings")
    install(request.param, folder)
    version = version_of(request.param)
    assert version is not None
    return version, folder


def asked(folder: Path, script: str, *words: str, told: object = None) -> dict[str, Any]:
    """What a script prints as its last line, run with the folder's packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        input=json.dumps(told),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def missing_in(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The names that the genuine package does not have, with what it says of each."""
    told = asked(folder, WALK, told=list(names))["names"]
    return {name: text for name, text in told.items() if isinstance(text, str)}


def test_every_name_that_we_use_is_there_and_none_that_we_say_is_gone(bindings: tuple[Version, Path]) -> None:
    version, folder = bindings
    wanted = [one.path for one in NAMES if one.in_release(version)]
    gone = {one.path for one in NAMES} - set(wanted)
    assert missing_in(folder, wanted) == {}
    assert set(missing_in(folder, sorted(gone))) == gone


def test_a_wrong_name_is_named(bindings: tuple[Version, Path]) -> None:
    """The test of the test above."""
    wrong = "BuilderFlag.FP17"
    told = missing_in(bindings[1], ["BuilderFlag.GPU_FALLBACK", wrong])
    assert told == {wrong: "type object 'tensorrt_bindings.tensorrt.BuilderFlag' has no attribute 'FP17'"}


def test_the_double_has_the_genuine_names_and_numbers(bindings: tuple[Version, Path]) -> None:
    version, folder = bindings
    numbers: dict[str, int | None] = {}
    for owner, members in names_of(".".join(map(str, version))).items():
        for member in members.split():
            name, _, value = member.partition("=")
            numbers[f"{owner}.{name}"] = int(value) if value else None
    told = asked(folder, WALK, told=list(numbers))["names"]
    enums = {name: value for name, value in numbers.items() if value is not None}
    assert {name: told[name] for name in enums} == enums
    assert [name for name in numbers if isinstance(told[name], str)] == []


def test_our_classes_derive_from_the_genuine_ones(bindings: tuple[Version, Path], tmp_path: Path) -> None:
    """The logger hears, the monitor stops, the calibrators answer; without a library no builder is made."""
    version, folder = bindings
    told = asked(folder, USE, str(write_onnx(tmp_path / "m.onnx")), str(tmp_path / "m.engine"))
    assert told["missing"] == []
    assert [line.partition("] ")[2] for line in told["lines"]] == ["[W] [TRT] one", ""]
    assert told["lines"][1] == "two"
    stops, calibrates = ([False] if version >= (10,) else []), ([4, 4] if version < (11,) else [])
    assert told["made"] == [*stops, *calibrates, "pybind11::init(): factory function returned nullptr"]


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_cannot_be_had_fails_in_ci_only(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no wheel"):
        give_up("no wheel")
