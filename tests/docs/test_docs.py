"""What the documentation says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from app.cli import cli
from app.config import Settings
from app.jobs import callbacks
from app.jobs.telemetry import Telemetry
from tests.harness import ROOT

PAGES = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.name != "LICENSE"
)
DECISIONS = sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/decisions/*.md"))
FENCE = re.compile(r"^(?:<!-- test: (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


def text(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_what_is_generated_is_fresh() -> None:
    command = [sys.executable, "scripts/generate_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_env_example_has_every_setting_and_no_other() -> None:
    named = re.findall(r"^# ([A-Z][A-Z0-9_]*)=", text(".env.example"), re.M)
    assert named == list(dict.fromkeys(named)), "none twice"
    assert set(named) == {name.upper() for name in Settings.model_fields}


def test_env_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    as_it_is = Settings()
    for name, value in re.findall(r"^# ([A-Z][A-Z0-9_]*)=(.*)$", text(".env.example"), re.M):
        monkeypatch.setenv(name, value)
    assert Settings() == as_it_is


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", text(page))
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if not link.startswith(("http://", "https://", "#")):
            target = (ROOT / page).parent / link.partition("#")[0]
            assert target.exists(), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_shell_blocks_are_run_or_say_why_not(page: Path) -> None:
    for block in FENCE.finditer(text(page)):
        if block["language"] in {"bash", "sh", "shell", "console"}:
            assert re.fullmatch(r"run|run \(.+\)|skip \(.+\)", block["mark"] or ""), f"{page}: {block['code'][:80]}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_nothing_names_somebodys_machine(page: Path) -> None:
    assert not re.search(r"/root/|/home/\w|/Users/\w", text(page))


@pytest.mark.parametrize("page", DECISIONS, ids=str)
def test_decisions_keep_their_form(page: Path) -> None:
    content = text(page)
    assert len(content.splitlines()) <= 60
    assert content.startswith(f"# {page.name[:4]} ")
    assert re.findall(r"^## (.+)$", content, re.M) == ["Context", "Decision", "Consequences"]


def test_decisions_are_numbered_once() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(numbers) == len(set(numbers))


def test_the_changelog_is_at_this_version() -> None:
    versions = re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.M)
    assert versions[0] == __version__
    assert f'version = "{__version__}"' in text("pyproject.toml")


def test_every_dependency_has_its_reason() -> None:
    project = text("pyproject.toml")
    dependencies = project.partition("dependencies = [")[2].partition("\n]")[0]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', dependencies))
    assert len(bounds) > 15
    explained = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", text("docs/dependencies.md"), re.M))
    assert explained == bounds


def test_the_lock_is_hashed_and_names_no_index() -> None:
    lock = text("requirements.lock")
    assert "://" not in lock
    assert "index-url" not in lock
    pinned = re.findall(r"^[\w.-]+==\S+", lock, re.M)
    assert len(pinned) == len(re.findall(r"^[\w.-]+==[^\n]*\\\n    --hash=sha256:", lock, re.M)) > 50


def test_every_figure_is_described() -> None:
    figures = {metric.name for metric in Telemetry().registry.collect()}
    described = re.findall(r"^\| `(optimizing_\w+)`", text("docs/operations.md"), re.M)
    assert {name.removesuffix("_total") for name in described} == figures


def test_every_command_is_described() -> None:
    commands = {command.callback.__name__ for command in cli.registered_commands if command.callback}
    described = set(re.findall(r"^\| `optimizing (\w+)", text("docs/cli.md"), re.M))
    assert described == commands


def test_the_verification_of_callbacks_verifies() -> None:
    (block,) = [block for block in FENCE.finditer(text("docs/callbacks.md")) if block["mark"] == "verify"]
    names: dict[str, object] = {}
    exec(compile(block["code"], "docs/callbacks.md", "exec"), names)
    verify, time = names["verify"], names["time"]
    assert callable(verify)
    secret, body, now = "whsec_" + "c2VjcmV0" * 6, b'{"type": "job.completed"}', int(time.time())  # type: ignore[attr-defined]
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": "v1,bm90IHRoaXM= " + callbacks.signature(secret, "msg_1", now, body),
    }
    verify(secret, headers, body)
    with pytest.raises(ValueError, match="not signed"):
        verify(secret, headers, body + b" ")
    with pytest.raises(ValueError, match="too old"):
        verify(secret, headers | {"webhook-timestamp": str(now - 3600)}, body)


def test_the_licence_is_the_whole_one() -> None:
    licence = text("LICENSE")
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert 'license = "AGPL-3.0-only"' in text("pyproject.toml")
