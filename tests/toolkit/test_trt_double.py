"""The double of trtexec takes and refuses what seven genuine option parsers took and refused, line by line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.trtexec_double.onnx_reader import read_graph
from tests.doubles.trtexec_double.options import Refused, parse
from tests.doubles.trtexec_double.releases import RELEASES, release
from tests.toolkit.trt import DOUBLE, executable, trtexec, write_onnx

ACCEPTS = Path(__file__).parents[1] / "assets" / "trt" / "trtexec_accepts.txt"
TRIED = re.compile(r"(?P<line>.*?)((?:\s+(?:Y|x1|x-6)){7})")


def tried() -> list[tuple[str, list[str], dict[str, list[str]]]]:
    """(options, verdict of each release, release -> what it printed)."""
    found: list[tuple[str, list[str], dict[str, list[str]]]] = []
    for text in ACCEPTS.read_text().splitlines()[1:]:
        if printed := re.match(r" +([\d.]+) (\[[WE]\].*)", text):
            found[-1][2][printed[1]] = [part for part in printed[2].split(" | ") if part != "[W]"]
        elif columns := TRIED.fullmatch(text):
            found.append((columns["line"], columns[2].split(), {}))
    return found


def answer(line: str, name: str) -> tuple[str, list[str]]:
    """The double's parser on one line: verdict, and what it prints."""
    printed: list[str] = []
    try:
        parse(["--onnx=m.onnx", *shlex.split(line)], release(name), 0, lambda text: printed.append(f"[W] {text}"))
    except Refused as error:
        return "x1", printed + [f"[E] {text}" for text in error.texts]
    return "Y", printed


@pytest.mark.parametrize("name", RELEASES)
def test_every_line_is_taken_or_refused_as_the_genuine_parser_did(name: str) -> None:
    column = RELEASES.index(name)
    lines = tried()
    assert len(lines) == sum(not text.startswith(" ") for text in ACCEPTS.read_text().splitlines()[1:])
    expected = {line: verdicts[column] for line, verdicts, _ in lines if not line.startswith("--device=1")}
    assert {line: answer(line, name)[0] for line in expected} == expected


def test_what_the_genuine_parsers_printed_is_printed() -> None:
    texts = [
        (line, name, text)
        for line, _, by_release in tried()
        for name, printed in by_release.items()
        for text in printed
        if "--safe" not in line
    ]
    assert len(texts) > 60
    missing = [(line, name, text) for line, name, text in texts if text not in map(str.rstrip, answer(line, name)[1])]
    assert not missing


@pytest.mark.parametrize("name", RELEASES)
def test_an_unknown_option_prints_the_help_and_fails(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [trtexec(tmp_path, name), "--onnx=m.onnx", "--bogus=7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "=== Model Options ===" in done.stdout.splitlines()
    assert done.stderr.rstrip().endswith("[E] Unknown option: --bogus 7")
    assert ("&&&& FAILED" in done.stdout) == (name != "11.1")


@pytest.mark.parametrize(
    ("name", "code"), [("8.2", -6), ("8.5", -6), ("8.6", -6), ("10.3", 1), ("10.16", 1), ("11.1", 1)]
)
def test_without_a_gpu_it_ends_as_the_release_does(tmp_path: Path, name: str, code: int) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    done = subprocess.run(
        [trtexec(tmp_path, name, "cuda"), f"--onnx={model}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "Cuda failure" in done.stderr
    assert "FAILED" not in done.stdout


def test_the_name_says_which_release_is_played(tmp_path: Path) -> None:
    done = subprocess.run([executable(tmp_path / "trtexec-8.5"), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("&&&& RUNNING TensorRT.trtexec [TensorRT v8503] # ")


def test_the_environment_says_which_release_is_played() -> None:
    told = {**os.environ, "TRTEXEC_DOUBLE_RELEASE": "11.0"}
    done = subprocess.run([sys.executable, DOUBLE, "--help"], capture_output=True, text=True, check=True, env=told)
    assert "[TensorRT v110000] [b72]" in done.stdout


def test_int8_without_calibration_succeeds_as_the_genuine_one_does(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    command = [str(trtexec(tmp_path, "10.3")), f"--onnx={model}", "--int8", "--skipInference"]
    assert "&&&& PASSED" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_onnx_is_read_without_onnx(tmp_path: Path) -> None:
    graph = read_graph(write_onnx(tmp_path / "m.onnx", ("batch", 3, 64, 64)).read_bytes())
    assert graph.inputs == {"images": (-1, 3, 64, 64)}
    assert [(node.op, node.name) for node in graph.nodes] == [("Conv", "/conv"), ("Relu", "/last")]
    with pytest.raises(ValueError, match="no "):
        read_graph(b"no model at all")
