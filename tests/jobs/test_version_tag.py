"""The tag of a version: the moment in UTC, and a commit where there is one."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from app.version_tag import git_sha, moment_of, version_tag

SEOUL = timezone(timedelta(hours=9))


@pytest.fixture(autouse=True)
def _no_commit_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_SHA", raising=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_tag_is_utc_and_seven_digits_of_the_commit() -> None:
    moment = datetime(2025, 8, 10, 23, 30, 12, 999_999, tzinfo=SEOUL)
    assert version_tag(moment, "ab12cd3ef4567890") == "20250810-143012-ab12cd3"
    assert version_tag(moment, "nogit") == "20250810-143012-nogit"


@pytest.mark.parametrize("sha", ["ab12cd3", "nogit"])
def test_a_name_tells_its_moment(sha: str) -> None:
    assert moment_of(f"detection-20250810-143012-{sha}.onnx") == "20250810-143012"


@pytest.mark.parametrize(
    "name", ["best.onnx", "detection-20250810-ab12cd3.onnx", "detection-20250810-143012-ab12cd.onnx", "detection.onnx"]
)
def test_a_name_without_a_tag_tells_none(name: str) -> None:
    assert moment_of(name) is None


def test_the_commit_is_the_repository_s(repository: Path) -> None:
    told = subprocess.run(["git", "-C", str(repository), "log", "--format=%H"], capture_output=True, check=True)
    below = repository / "below"
    below.mkdir()
    assert git_sha(repository) == git_sha(below) == told.stdout.decode()[:7]


def test_a_commit_that_is_given_comes_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SHA", "0123456789abcdef")
    assert git_sha(repository) == "0123456"
    monkeypatch.setenv("GIT_SHA", "nogit")
    assert git_sha(repository) == "nogit"


@pytest.mark.parametrize("given", ["../../etc", "123456", "main", "0123456\n", "0123456 "])
def test_what_is_given_and_no_commit_is_refused(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SHA", given)
    with pytest.raises(ValueError, match="GIT_SHA"):
        git_sha(tmp_path)


def test_without_a_repository_a_commit_or_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_sha(tmp_path) == "nogit"
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert git_sha(tmp_path) == "nogit", "no commit yet"
    assert git_sha(tmp_path / "not-there") == "nogit"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_sha(tmp_path) == "nogit", "no git"
