"""The documented commands, pasted in the order of their page into a shell, against a service of the page's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.test_docs import FENCE, text
from tests.harness import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("curl"), reason="the documented commands use curl"),
]


def paste(page: str, service: Service, folder: Path) -> str:
    """Everything that the blocks of a page printed. A request that is refused fails, but where the page says so."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for block in FENCE.finditer(text(page)):
        if not (block["mark"] or "").startswith("run"):
            continue
        strict = "" if "refused" in block["mark"] else "fail-with-body\nshow-error\n"
        (folder / ".curlrc").write_text(strict)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block["code"].replace("http://127.0.0.1:8000", service.url)],
            cwd=folder,
            env={"PATH": commands, "HOME": str(folder), "OPTIMIZING_URL": service.url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (block["code"], done.stdout, done.stderr)
        printed += done.stdout
    return printed


@pytest.mark.parametrize(
    ("page", "signs"),
    [
        ("README.md", ['"status":"started"', "event: progress", '"boxes_max_abs_px"', "P0001/O0004 pt_to_onnx_fp32"]),
        (
            "docs/api.md",
            ["HTTP/1.1 202", "location: /optimizing/jobs/P0001/O0002", "JOB_FINISHED", "JOB_NOT_RETRYABLE"],
        ),
    ],
)
def test_a_page_can_be_pasted(
    page: str, signs: list[str], make_service: Callable[..., Service], tmp_path: Path, pills_model: Path
) -> None:
    service = make_service(KIND_PACKAGES="")
    folder = tmp_path / "shell"
    folder.mkdir()
    shutil.copyfile(pills_model, folder / "best.pt")
    printed = paste(page, service, folder)
    for sign in signs:
        assert sign in printed, printed
    assert len(set(re.findall(r'"oid":"(O\d+)","action"', printed))) <= 2, "idempotent requests made one job"
    assert service.job("/optimizing/jobs/P0001/O0002")["status"] == "completed"
    if page == "README.md":
        fetched = folder / "P0001-O0002" / "best_fp32.onnx"
        assert fetched.read_bytes() == (folder / "best_fp32.onnx").read_bytes()
