"""The tag of a file's version, `20250810-143012-ab12cd3`: when it was asked for, and from which commit (S4 E-1).

Beside the service and not in it: its own process makes the tag of an export, and must stay light.
"""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

NO_GIT = "nogit"
SHA_DIGITS = 7
GIT_SEC = 5.0

COMMIT = r"[0-9a-f]{7,64}"
VERSIONED = re.compile(rf"[a-z]+-(?P<moment>[0-9]{{8}}-[0-9]{{6}})-(?:[0-9a-f]{{{SHA_DIGITS}}}|{NO_GIT})\.[a-z]+")


def version_tag(now: datetime, sha: str) -> str:
    """`<UTC>-<sha>` of a moment with a time zone and a commit, which is shortened to seven digits, or "nogit"."""
    return f"{now.astimezone(timezone.utc):%Y%m%d-%H%M%S}-{sha[:SHA_DIGITS]}"


def moment_of(name: str) -> str | None:
    """`20250810-143012` of a name such as `detection-20250810-143012-ab12cd3.onnx`; None of one without a tag.

    Moments sort as text.
    """
    found = VERSIONED.fullmatch(name)
    return found["moment"] if found else None


def git_sha(folder: Path) -> str:
    """Seven digits of the commit: GIT_SHA of the environment, else that of the folder's repository, else "nogit".

    Raises ValueError for a GIT_SHA that is no commit: it becomes part of file names.
    """
    given = os.environ.get("GIT_SHA", "")
    if given and given != NO_GIT and not re.fullmatch(COMMIT, given):
        raise ValueError(f"GIT_SHA: expected 7 to 64 hexadecimal digits or {NO_GIT!r}, got {given[:80]!r}")
    return (given or _head(folder))[:SHA_DIGITS]


def _head(folder: Path) -> str:
    """The commit that is checked out; "nogit" without git, a repository or a commit."""
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_SEC)
    except (OSError, subprocess.SubprocessError):
        return NO_GIT
    commit = done.stdout.strip()
    return commit if done.returncode == 0 and re.fullmatch(COMMIT, commit) else NO_GIT
