"""Archives of images that cannot be unpacked are told so, whatever the libraries raise."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from app.archives import MAX_UNPACKED_BYTES, BadArchive, unpack


def deflated(folder: Path) -> bytearray:
    """A zip of one file; its local header is of 41 bytes, the data begin there."""
    with zipfile.ZipFile(folder / "whole.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("images.png", b"some pixels" * 5000)
    return bytearray((folder / "whole.zip").read_bytes())


def refused(data: bytes | bytearray, path: Path) -> str:
    path.write_bytes(data)
    with pytest.raises(BadArchive) as raised:
        unpack(path, path.with_name("out"))
    return str(raised.value)


def test_data_that_cannot_be_decompressed(tmp_path: Path) -> None:
    data = deflated(tmp_path)
    data[42:72] = bytes(255 - one for one in data[42:72])
    assert "broken.zip: " in refused(data, tmp_path / "broken.zip")


@pytest.mark.parametrize(("offset", "value", "words"), [(6, 1, "password"), (8, 97, "compression")])
def test_a_password_and_a_compression_that_are_not_known(offset: int, value: int, words: str, tmp_path: Path) -> None:
    data = deflated(tmp_path)
    entry = data.index(b"PK\x01\x02")
    data[offset], data[entry + offset + 2] = value, value
    assert words in refused(data, tmp_path / "strange.zip")


def test_a_bomb_is_refused_at_the_member_that_is_too_much(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = MAX_UNPACKED_BYTES + 1
    data = member.tobuf() + bytes(512)  # whoever looked for the next member would find the end instead
    assert f"{member.size} bytes when unpacked" in refused(data, tmp_path / "bomb.tar")
