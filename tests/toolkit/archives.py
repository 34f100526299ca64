"""Writes checkpoints byte by byte: the archive that torch.save makes, around any pickle."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any


def write_archive(
    path: Path, data_pkl: bytes, *, others: dict[str, bytes] | None = None, deflate: bool = False
) -> Path:
    """An archive as torch.save makes it, with `data_pkl` for its pickle and more entries beside it."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("evil/data.pkl", data_pkl)
        archive.writestr("evil/byteorder", b"little")
        for name, content in (others or {}).items():
            archive.writestr(f"evil/{name}", content)
        archive.writestr("evil/version", b"3\n")
    return path


class Call:
    """Pickles as a call of `function(*arguments)`; with `state`, as that call's result filled with it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self._reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._reduced


def pickled(value: Any, protocol: int = 2) -> bytes:
    """The value as a pickle; 2 is torch.save's protocol."""
    return pickle.dumps(value, protocol=protocol)


def text(value: str) -> bytes:
    """A BINUNICODE opcode."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module: str, attribute: str) -> bytes:
    """A GLOBAL opcode."""
    return f"c{module}\n{attribute}\n".encode()
