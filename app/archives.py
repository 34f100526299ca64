"""Archives of images, which come from strangers: they neither climb out of their folder nor fill the disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
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
                unpacked = 0
                for member in packed_tar:  # before the next is looked for, as all between is decompressed
                    unpacked += member.size
                    _check_size(archive, unpacked)
                packed_tar.extractall(target, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise BadArchive(f"{archive.name}: {error}") from error
    except (RuntimeError, ValueError) as error:  # a password, an unknown compression; a name that no file can have
        raise BadArchive(f"{archive.name}: {error}") from error


def _check_size(archive: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise BadArchive(f"{archive.name}: {unpacked_bytes} bytes when unpacked, at most {MAX_UNPACKED_BYTES}")
