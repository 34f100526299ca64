"""Archives of images, which come from strangers: they neither climb out of their folder nor fill the disk."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_UNPACKED_BYTES = 64 * 1024**3


class BadArchive(Exception):
    """An archive that is broken, climbs out or is a bomb; the text says which."""


def unpack(archive: Path, target: Path) -> None:
    """Put an archive's files into a folder, which is made. Raises BadArchive."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                _check_size(archive, sum(member.file_size for member in packed.infolist()))
                packed.extractall(target)  # noqa: S202 - zipfile drops roots and `..` itself
        else:
            with tarfile.open(archive) as packed_tar:
                _check_size(archive, sum(member.size for member in packed_tar))
                packed_tar.extractall(target, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise BadArchive(f"{archive.name}: {error}") from error


def _check_size(archive: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise BadArchive(f"{archive.name}: {unpacked_bytes} bytes when unpacked, at most {MAX_UNPACKED_BYTES}")
