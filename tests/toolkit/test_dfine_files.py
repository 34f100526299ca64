"""Archives and configurations of D-FINE that cannot be read are refused, and name why."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.errors import CorruptFile, InvalidPreprocessing, UnknownModelFamily
from app.toolkit.models.dfine_checkpoint import PROCESSOR, open_dfine
from tests.toolkit.dfines import save_dfine


@pytest.fixture(scope="module")
def dfine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return save_dfine(tmp_path_factory.mktemp("dfine") / "tiny")


def test_data_that_cannot_be_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("config.json", b'{"a": 1}' * 5000)
    data = bytearray(path.read_bytes())
    data[45:75] = bytes(255 - one for one in data[45:75])
    path.write_bytes(data)
    with pytest.raises(CorruptFile):
        open_dfine(path)


def test_a_link_of_the_same_name_is_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        whole, link = tarfile.TarInfo("config.json"), tarfile.TarInfo("config.json")
        whole.size, link.type, link.linkname = 2, tarfile.SYMTYPE, "nowhere"
        packed.addfile(whole, io.BytesIO(b"{}"))
        packed.addfile(link)
    with pytest.raises(UnknownModelFamily):  # of the whole one, which says nothing
        open_dfine(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("name", "value"), [("rescale_factor", None), ("rescale_factor", "x"), ("resample", [2]), ("resample", {})]
)
def test_preprocessing_of_another_type(name: str, value: Any, dfine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dfine, tmp_path / "strange"))
    words = json.loads((folder / PROCESSOR).read_text())
    (folder / PROCESSOR).write_text(json.dumps({**words, name: value}))
    with pytest.raises(InvalidPreprocessing, match=name):
        open_dfine(folder)
