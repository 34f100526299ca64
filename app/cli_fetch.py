"""Fetching artifacts: written beside and renamed, digests compared, a broken download taken up where it broke."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from app.cli_view import View
from app.client import Client, JobName, Unavailable

ATTEMPTS = 5
PAUSE_SEC = 0.5
READ_BYTES = 1024 * 1024


def fetch(client: Client, view: View, name: JobName, artifact: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Brings one artifact into `folder`; what is there already, whole, is not fetched again."""
    target = _target(folder, artifact["name"])
    wanted: str | None = artifact["sha256"]
    report = {"name": artifact["name"], "path": str(target), "size_bytes": artifact["size_bytes"], "sha256": wanted}
    if wanted and target.is_file() and _digest(target) == wanted:
        return report | {"fetched_bytes": 0}
    part = target.with_name(f".{target.name}.{(wanted or 'unknown')[:12]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    fetched = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            part.touch()
            with view.transfer(artifact["name"]) as on_progress, part.open("r+b") as file:
                for offset, chunk in _missing(client, name, artifact, part.stat().st_size):
                    _write(file, offset, chunk)
                    fetched += len(chunk)
                    on_progress(offset + len(chunk), artifact["size_bytes"])
            break
        except Unavailable:
            if attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE_SEC * attempt)
    report["sha256"] = _verified(part, artifact)
    part.replace(target)
    return report | {"fetched_bytes": fetched}


def _target(folder: Path, artifact: str) -> Path:
    """Where an artifact goes. A name from the network must not lead out of the folder."""
    target = folder / artifact
    if ".." in Path(artifact).parts or not target.resolve().is_relative_to(folder.resolve()):
        raise Unavailable(
            {
                "code": "UNSAFE_NAME",
                "detail": "the service names an artifact that would be written elsewhere",
                "expected": "a name within the job",
                "received": artifact[:200],
            }
        )
    return target


def _missing(client: Client, name: JobName, artifact: dict[str, Any], have: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what is still lacking. Without a digest nothing says that a part is of the same file."""
    size, wanted = artifact["size_bytes"], artifact["sha256"]
    start = have if wanted and have <= size else 0
    if start < size:
        yield from client.read_artifact(name, artifact["name"], start, wanted)


def _write(file: BinaryIO, offset: int, chunk: bytes) -> None:
    """Puts a chunk in its place; the first of an answer that begins anew drops what was there."""
    if offset == 0 or file.tell() != offset:
        file.seek(offset)
        file.truncate()
    file.write(chunk)


def _verified(part: Path, artifact: dict[str, Any]) -> str:
    """The digest of a whole download. Raises Unavailable, with the part removed, where it is another file."""
    found = _digest(part)
    if artifact["sha256"] not in {None, found} or part.stat().st_size != artifact["size_bytes"]:
        part.unlink()
        raise Unavailable(
            {
                "code": "DOWNLOAD_DAMAGED",
                "detail": f"{artifact['name']} did not arrive as the service holds it",
                "expected": f"{artifact['size_bytes']} bytes, sha256 {artifact['sha256']}",
                "received": f"sha256 {found}",
                "hint": "fetch it again; what came was removed",
            }
        )
    return found


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            sha.update(chunk)
    return sha.hexdigest()
