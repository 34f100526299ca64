"""Files that run code when they are loaded. None may, and each must be named for what it asked.

`tripwire` is the command that every attack tries to run: it makes a file. The same attacks through a trusted load do
make it, which shows that they are attacks.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import functools
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from app.toolkit.checkpoint import open_checkpoint
from app.toolkit.errors import UnsafeCheckpoint
from tests.toolkit.archives import Call, name, pickled, text, write_archive

Attack = Callable[[str], bytes]

PROTO, STOP = b"\x80\x02", b"."
EMPTY_TUPLE, TUPLE1, TUPLE2, REDUCE, NEWOBJ, BUILD = b")", b"\x85", b"\x86", b"R", b"\x81", b"b"
DETECTION_MODEL = name("ultralytics.nn.tasks", "DetectionModel")
LINEAR = name("torch.nn.modules.linear", "Linear")


def _poisoned_yaml(command: str) -> dict[str, Any]:
    return {
        "nc": 1,
        "activation": f"__import__('os').system({command!r}) or nn.SiLU()",
        "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
        "head": [[[0], 1, "Detect", ["nc"]]],
        "scales": {"n": [1.0, 1.0, 8]},
    }


def _filled(state: bytes) -> bytes:
    """A Linear made without a constructor, and filled with a dictionary's opcodes."""
    return PROTO + LINEAR + EMPTY_TUPLE + NEWOBJ + b"}(" + state + b"u" + BUILD + STOP


def _nested(command: str) -> bytes:
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner)
    return pickled(Call(functools.partial(torch.load, weights_only=False), Call(io.BytesIO, inner.getvalue())))


ATTACKS: dict[str, tuple[Attack, str]] = {
    "os.system by REDUCE": (lambda c: pickled(Call(os.system, c)), r"posix\.system"),
    "os.system by its own name": (
        lambda c: PROTO + name("os", "system") + text(c) + TUPLE1 + REDUCE + STOP,
        r"os\.system",
    ),
    "eval": (lambda c: pickled(Call(builtins.eval, f"__import__('os').system({c!r})")), r"builtins\.eval"),
    "exec inside a dictionary": (
        lambda c: pickled({"model": [Call(exec, f"import os; os.system({c!r})")]}),
        r"builtins\.exec",
    ),
    "protocol 4, STACK_GLOBAL": (lambda c: pickled(Call(os.system, c), 4), r"posix\.system \(opcode STACK_GLOBAL\)"),
    "STACK_GLOBAL from the memo": (
        lambda c: (
            b"\x80\x04"
            + text("os")
            + b"q\x00"
            + text("system")
            + b"q\x01h\x00h\x01\x93"
            + text(c)
            + TUPLE1
            + REDUCE
            + STOP
        ),
        r"os\.system \(opcode STACK_GLOBAL\)",
    ),
    "STACK_GLOBAL after POP and DUP": (
        lambda c: (
            b"\x80\x04"
            + text("os")
            + text("x")
            + b"0"
            + text("system")
            + b"2"
            + b"0"
            + b"\x93"
            + text(c)
            + TUPLE1
            + REDUCE
            + STOP
        ),
        r"os\.system \(opcode STACK_GLOBAL\)",
    ),
    "INST": (lambda c: b"(S" + repr(c).encode() + b"\nios\nsystem\n.", r"os\.system \(opcode INST\)"),
    "OBJ": (lambda c: b"(" + name("os", "system") + text(c) + b"o.", r"os\.system"),
    "NEWOBJ_EX": (lambda c: b"\x80\x04" + name("os", "system") + text(c) + TUPLE1 + b"}\x92.", r"os\.system"),
    "functools.partial": (
        lambda c: pickled(Call(functools.partial(os.system, c))),
        r"functools\.partial",
    ),
    "map and list": (lambda c: pickled(Call(list, Call(map, os.system, [c]))), r"posix\.system"),
    "torch.load of another pickle": (_nested, r"torch\.(serialization\.)?load"),
    "getattr on a module": (
        lambda c: (
            PROTO
            + name("builtins", "getattr")
            + name("builtins", "__import__")
            + text("os")
            + TUPLE1
            + REDUCE
            + text("system")
            + TUPLE2
            + REDUCE
            + text(c)
            + TUPLE1
            + REDUCE
            + STOP
        ),
        "builtins.__import__",
    ),
    "NumPy's object scalar": (
        lambda c: pickled([Call(np.float64(0).__reduce__()[0], np.dtype("O"), Call(os.system, c))]),
        r"numpy\.dtype \(called\)",
    ),
    "a constructor that evaluates its yaml": (
        lambda c: pickled(Call(DetectionModel, _poisoned_yaml(c), 3, None, False)),
        r"ultralytics\.nn\.tasks\.DetectionModel \(called\)",
    ),
    "a filled layer with a hostile method": (
        lambda _: _filled(text("forward") + name("posix", "system")),
        r"posix\.system",
    ),
}
RUNS_WHEN_TRUSTED = (
    "os.system by REDUCE",
    "os.system by its own name",
    "eval",
    "exec inside a dictionary",
    "protocol 4, STACK_GLOBAL",
    "STACK_GLOBAL from the memo",
    "INST",
    "OBJ",
    "map and list",
    "functools.partial",
    "torch.load of another pickle",
    "getattr on a module",
    "a constructor that evaluates its yaml",
)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_is_refused_by_name_and_runs_nothing(kind: str, tmp_path: Path, marker: Path) -> None:
    attack, wanted = ATTACKS[kind]
    path = write_archive(tmp_path / "evil.pt", attack(f"touch {marker}"))
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(path)
    assert not marker.exists()
    assert any(re.search(wanted, asked) for asked in caught.value.names), caught.value.names


@pytest.mark.parametrize("kind", RUNS_WHEN_TRUSTED)
def test_the_same_attack_succeeds_where_the_file_is_trusted(kind: str, tmp_path: Path, marker: Path) -> None:
    path = write_archive(tmp_path / "evil.pt", ATTACKS[kind][0](f"touch {marker}"))
    with contextlib.suppress(Exception):  # whatever comes of the load, the command has run
        open_checkpoint(path, trusted=True)
    assert marker.exists()


def test_the_first_published_attack_passes_a_plain_allow_list_and_not_this_one(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "called.pt"
    torch.save(Call(DetectionModel, _poisoned_yaml(f"touch {marker}"), 3, None, False), path)
    with pytest.raises(UnsafeCheckpoint, match=r"DetectionModel \(called\)"):
        open_checkpoint(path)
    assert not marker.exists()
    allowed = [DetectionModel, *{type(m) for m in DetectionModel("yolov8n.yaml", verbose=False).modules()}, set]
    with torch.serialization.safe_globals(allowed), contextlib.suppress(Exception):  # it need not end well
        torch.load(path, weights_only=True)
    assert marker.exists(), "a plain allow-list no longer runs this: the scan may have become needless"


def test_a_poisoned_yaml_in_a_good_checkpoint_is_refused_before_anyone_rebuilds_it(
    pills: Path, tmp_path: Path, marker: Path
) -> None:
    content = open_checkpoint(pills).content
    content["model"].yaml["activation"] = f"__import__('os').system('touch {marker}')"
    torch.save(content, tmp_path / "poisoned.pt")
    with pytest.raises(UnsafeCheckpoint, match="activation") as caught:
        open_checkpoint(tmp_path / "poisoned.pt")
    assert "__import__" in caught.value.names[0]
    assert not marker.exists()


STACK_TRICKS: dict[str, tuple[bytes, str]] = {
    "a class called with nothing": (PROTO + LINEAR + EMPTY_TUPLE + REDUCE + STOP, r"Linear \(called\)"),
    "NEWOBJ with arguments": (
        PROTO + LINEAR + b"K\x01" + TUPLE1 + NEWOBJ + STOP,
        r"Linear \(instantiated with arguments\)",
    ),
    "NEWOBJ with arguments from the memo": (
        PROTO + b"K\x01" + TUPLE1 + b"q\x00" + LINEAR + b"h\x00" + NEWOBJ + STOP,
        r"Linear \(instantiated with arguments\)",
    ),
    "NEWOBJ of a function": (
        PROTO + name("torch._utils", "_rebuild_parameter") + EMPTY_TUPLE + NEWOBJ + STOP,
        r"_rebuild_parameter \(instantiated\)",
    ),
    "a call of an instance": (
        PROTO + LINEAR + EMPTY_TUPLE + NEWOBJ + EMPTY_TUPLE + REDUCE + STOP,
        "a call of something",
    ),
    "a call with a list for arguments": (
        PROTO + name("collections", "OrderedDict") + b"]" + REDUCE + STOP,
        "OrderedDict .called with computed arguments",
    ),
    "a class kept as an attribute": (
        _filled(text("forward") + DETECTION_MODEL),
        r"DetectionModel \(kept as data\)",
    ),
    "a class kept in a tuple in a list": (
        PROTO + b"](" + DETECTION_MODEL + TUPLE1 + TUPLE1 + b"e" + STOP,
        r"DetectionModel \(kept as data\)",
    ),
    "a class handed to a call": (
        PROTO + name("collections", "OrderedDict") + DETECTION_MODEL + TUPLE1 + REDUCE + STOP,
        r"OrderedDict \(called\)",
    ),
    "a class as the whole file": (PROTO + DETECTION_MODEL + STOP, r"DetectionModel \(kept as data\)"),
    "getattr for a constructor": (
        PROTO + name("builtins", "getattr") + DETECTION_MODEL + text("__init__") + TUPLE2 + REDUCE + STOP,
        r"builtins\.getattr \(called\)",
    ),
    "getattr on an instance": (
        PROTO + name("builtins", "getattr") + LINEAR + EMPTY_TUPLE + NEWOBJ + text("forward") + TUPLE2 + REDUCE + STOP,
        r"builtins\.getattr \(called\)",
    ),
    "BUILD on a dictionary": (PROTO + b"}}" + BUILD + STOP, "something that is not an instance"),
    "BUILD on a tensor": (
        PROTO + name("torch._utils", "_rebuild_tensor_v2") + EMPTY_TUPLE + REDUCE + b"}" + BUILD + STOP,
        r"_rebuild_tensor_v2 \(filled\)",
    ),
    "a text persistent id": (b"Pstorage\n.", "opcode PERSID"),
    "a persistent id of a class": (
        PROTO + text("storage") + DETECTION_MODEL + TUPLE2 + b"Q" + STOP,
        "not a torch storage",
    ),
    "a persistent id that is a number": (PROTO + b"K\x01Q" + STOP, "not a torch storage"),
    "an extension code": (PROTO + b"\x82\x01" + STOP, "opcode EXT1"),
    "a function of a model module": (
        PROTO + name("ultralytics.nn.tasks", "parse_model") + b"0N.",
        r"tasks\.parse_model",
    ),
    "a path through a class": (
        PROTO + name("torch.nn.modules.container", "Sequential.__init__.__globals__") + b"0N.",
        "__globals__",
    ),
    "a model class that loads other files": (
        PROTO + name("ultralytics.nn.autobackend", "AutoBackend") + EMPTY_TUPLE + NEWOBJ + STOP,
        "AutoBackend",
    ),
    "a NumPy array of objects": (
        pickled(np.array([{}], dtype=object)),
        r"numpy\._?core\.multiarray\._reconstruct",
    ),
    "an odd dtype state": (
        PROTO
        + name("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87"
        + REDUCE
        + b"K\x03"
        + text("<")
        + TUPLE2
        + BUILD
        + STOP,
        r"numpy\.dtype \(filled\)",
    ),
    "a codec other than latin1": (
        PROTO + name("_codecs", "encode") + text("a") + text("zip") + TUPLE2 + REDUCE + STOP,
        r"_codecs\.encode \(called\)",
    ),
    "a name with a space in it": (PROTO + b"cos system\nx\n0N.", "os system"),
}


@pytest.mark.parametrize("kind", STACK_TRICKS)
def test_a_stack_trick_is_refused(kind: str, tmp_path: Path) -> None:
    data, wanted = STACK_TRICKS[kind]
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(write_archive(tmp_path / "evil.pt", data))
    assert any(re.search(wanted, asked) for asked in caught.value.names), caught.value.names


def test_a_second_pickle_in_the_archive_is_scanned_too(tmp_path: Path, marker: Path) -> None:
    evil = pickled(Call(os.system, f"touch {marker}"))
    path = write_archive(tmp_path / "two.pt", pickled({"a": 1}), others={"extra/more.pkl": evil})
    with pytest.raises(UnsafeCheckpoint, match=r"posix\.system"):
        open_checkpoint(path)


def test_every_name_that_the_file_wanted_is_listed(tmp_path: Path) -> None:
    wanted = [Call(os.getcwd), Call(os.getpid), Call(collections.Counter), Call(copyreg.constructor, int)]
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(write_archive(tmp_path / "many.pt", pickled(wanted)))
    listed = " ".join(caught.value.names)
    assert all(one in listed for one in ("posix.getcwd", "posix.getpid", "collections.Counter", "copyreg.constructor"))
    assert caught.value.code == "UNSAFE_CHECKPOINT"
    assert all(one in str(caught.value) for one in caught.value.names)


def test_a_tuple_folded_into_itself_many_times_is_walked_in_no_time(tmp_path: Path) -> None:
    folds = b"".join(b"q" + bytes([index]) + b"h" + bytes([index]) + TUPLE2 for index in range(200))
    opened = open_checkpoint(write_archive(tmp_path / "folded.pt", PROTO + EMPTY_TUPLE + folds + STOP))
    assert isinstance(opened.content, tuple)


def test_the_allow_list_is_gone_after_a_load(pills: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    open_checkpoint(pills)
    assert set(torch.serialization.get_safe_globals()) == before
    assert nn.Linear not in before
