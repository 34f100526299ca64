"""A trtexec for the tests: the double, playing a release, and a model for it to build."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
DOUBLE = ROOT / "tests" / "doubles" / "trtexec"


def trtexec(
    folder: Path, release: str = "10.3", scenario: str = "success", *, dla_cores: int = 0, pause_sec: float = 0.0
) -> Path:
    """An executable `trtexec` in a folder of its own, which needs nothing of the environment."""
    place = folder / f"trtexec-{release}-{scenario}-{dla_cores}"
    place.mkdir(exist_ok=True)
    told = {"release": release, "scenario": scenario, "dla_cores": dla_cores, "pause_sec": pause_sec}
    (place / "trtexec.json").write_text(json.dumps(told))
    return executable(place / "trtexec")


def executable(path: Path) -> Path:
    """The double under another name, run by the interpreter that runs the tests."""
    lines = [
        f"#!{sys.executable}",
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from tests.doubles.trtexec_double.main import main",
        "sys.exit(main(sys.argv))",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


def write_onnx(path: Path, axes: Sequence[int | str] = (1, 3, 64, 64), *, last: str = "Relu") -> Path:
    """A convolution, then a node of type `last`; a name among the axes makes that one dynamic."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [2, 3, 3, 3], [0.1] * 54)
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["seen"], name="/conv"),
        helper.make_node(last, ["seen"], ["output0"], name="/last"),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, axes)
    made = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", [given], [made], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
