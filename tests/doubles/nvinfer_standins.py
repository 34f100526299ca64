"""Libraries that let NVIDIA's genuine Python bindings be imported where there is neither TensorRT nor a GPU.

The bindings need a few functions of libnvinfer, libnvonnxparser and others when they are loaded. Here each returns a
null pointer, and a version where its name asks for one. Which libraries and functions they are is read from the
bindings themselves, so that no release is written down. What then works for real: every name, enum numbers, signatures,
deriving from base classes. What does not: making a builder or a runtime, which fails as it does without a usable GPU.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

OURS = ("Py", "_Py", "__cxa", "dl")
"""How undefined symbols begin that others bring."""
VERSION = 1_000_000
TOOLS = ("gcc", "nm", "readelf")


def make_standins(folder: Path) -> None:
    """Puts them beside the bindings' library somewhere in `folder`, where it looks first."""
    library = next(folder.rglob("tensorrt.so"))
    needed = re.findall(r"NEEDED.*\[(libnv[^\]]+)\]", _told("readelf", "-d", str(library)))
    lines = _told("nm", "-D", "--undefined-only", str(library)).splitlines()
    symbols = [name for kind, name in (line.split()[-2:] for line in lines) if kind == "U" and _missing(name)]
    source = library.with_name("standins.c")
    source.write_text("\n".join(map(_function, symbols)) + "\n")
    empty = library.with_name("empty.c")
    empty.write_text("")
    for name in needed:  # symbols are bound by name over all libraries: which one brings them does not matter
        code = source if name.startswith("libnvinfer.so") else empty
        target = str(library.with_name(name))
        _told("gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", target, str(code))


def _missing(name: str) -> bool:
    return "@" not in name and not name.startswith(OURS)


def _function(name: str) -> str:
    if name.endswith("Version"):
        return f"int {name}(void) {{ return {VERSION}; }}"
    return f"void *{name}(void) {{ return 0; }}"


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
