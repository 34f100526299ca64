"""Artifacts come whole or not at all, and what is there already is not fetched again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from app.cli_fetch import _target
from app.client import Unavailable
from tests.cli.conftest import Optimizing
from tests.cli.cutting_proxy import cutting
from tests.harness import Service


@pytest.fixture
def stored(service: Service, pid: str, hello: Path) -> str:
    """PID/OID of an upload of `hello`."""
    key = service.upload(pid, "hello.txt", hello)
    return f"{pid}/{key.split('/')[3]}"


def _part(folder: Path, content: bytes) -> Path:
    return folder / f".hello.txt.{hashlib.sha256(content).hexdigest()[:12]}.part"


def test_everything_of_a_job(optimizing: Optimizing, tmp_path: Path, pid: str, hello: Path) -> None:
    job = optimizing("submit", "echo", str(hello), "--pid", pid, "--json").json
    ended = optimizing("fetch", f"{pid}/{job['oid']}", "--json")
    assert ended.code == 0, ended.err
    folder = tmp_path / f"{pid}-{job['oid']}"
    assert sorted(path.name for path in folder.iterdir()) == ["hello_echo.txt", "job.log"]
    assert (folder / "hello_echo.txt").read_bytes() == hello.read_bytes()
    assert ended.json["files"][0]["sha256"] == hashlib.sha256(hello.read_bytes()).hexdigest()


def test_one_file_and_not_twice(optimizing: Optimizing, stored: str, tmp_path: Path, hello: Path) -> None:
    size = hello.stat().st_size
    words = ("fetch", *stored.split("/"), "hello.txt", "--to", "here", "--json")
    assert optimizing(*words).json["files"][0]["fetched_bytes"] == size
    assert optimizing(*words).json["files"][0]["fetched_bytes"] == 0
    (tmp_path / "here" / "hello.txt").write_text("damaged")
    assert optimizing(*words).json["files"][0]["fetched_bytes"] == size
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["hello.txt"]


def test_a_part_is_completed(optimizing: Optimizing, stored: str, tmp_path: Path, hello: Path) -> None:
    content = hello.read_bytes()
    part = _part(tmp_path / "here", content)
    part.parent.mkdir()
    part.write_bytes(content[:500_000])
    ended = optimizing("fetch", stored, "--to", "here", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["files"][0]["fetched_bytes"] == len(content) - 500_000
    assert (tmp_path / "here" / "hello.txt").read_bytes() == content
    assert not part.exists()


def test_a_broken_download_goes_on(
    optimizing: Optimizing, service: Service, stored: str, tmp_path: Path, hello: Path
) -> None:
    with cutting(service.port, b"/artifacts/hello.txt", cut_after=300_000, cuts=2) as proxy:
        ended = optimizing("fetch", stored, "--to", "here", "--json", "--url", proxy.url)
        ranges = [b"range: bytes=" in head.lower() for head in proxy.asked(b"/artifacts/hello.txt")]
    assert ended.code == 0, ended.err
    assert ranges == [False, True, True]
    assert (tmp_path / "here" / "hello.txt").read_bytes() == hello.read_bytes()


def test_a_damaged_part_is_found_out_and_removed(
    optimizing: Optimizing, stored: str, tmp_path: Path, hello: Path
) -> None:
    content = hello.read_bytes()
    part = _part(tmp_path / "here", content)
    part.parent.mkdir()
    part.write_bytes(b"x" * 500_000)
    ended = optimizing("fetch", stored, "--to", "here", "--json")
    assert ended.code == 4
    assert ended.json["error"]["code"] == "DOWNLOAD_DAMAGED"
    assert list((tmp_path / "here").iterdir()) == []
    assert optimizing("fetch", stored, "--to", "here").code == 0


def test_an_unknown_name_lists_what_is_there(optimizing: Optimizing, stored: str) -> None:
    ended = optimizing("fetch", stored, "goodbye.txt")
    assert ended.code == 2
    assert "hello.txt" in ended.err


def test_a_folder_that_cannot_be_written_is_2(optimizing: Optimizing, stored: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    ended = optimizing("fetch", stored, "--to", "taken")
    assert ended.code == 2, ended.err
    assert "LOCAL_FILE" in ended.err


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "linked/evil"])
def test_a_name_from_the_network_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(Unavailable, match="elsewhere"):
        _target(folder, name)
