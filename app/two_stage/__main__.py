"""`python -m app.two_stage CONFIG`, which is what `scripts/export_onnx.sh` runs (S4 E-6, E-10).

Prints `[OK] Exported: PATH` for each stage and `Report: PATH`; what went wrong goes to stderr. Exits with 0, or with 1
where any stage failed or nothing could begin.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from app.library_variables import FIXED_VARIABLES
from app.two_stage.config import ConfigFault, find_stages, read_config
from app.version_tag import git_sha

USAGE = "usage: export_onnx.sh [CONFIG.yaml]"


def main(words: list[str]) -> int:
    if len(words) != 1:
        return _fail(USAGE)
    try:
        config = read_config(Path(words[0]), os.environ.get("OPSET", ""))
        stages = find_stages(config.exp_dir)
        sha = git_sha(Path(__file__).parent)
    except (ConfigFault, ValueError) as fault:
        return _fail(str(fault))
    os.environ.update(FIXED_VARIABLES)
    from app.two_stage.stages import export_stages  # noqa: PLC0415 - heavy, and reads the environment

    try:
        with redirect_stdout(sys.stderr):  # libraries print, too
            outcomes, report = export_stages(config, stages, sha)
    except (ConfigFault, OSError) as fault:
        return _fail(str(fault))
    for outcome in outcomes:
        if not outcome.failed:
            print(f"[OK] Exported: {outcome.onnx}")
    print(f"Report: {report}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _fail(text: str) -> int:
    print(f"[FAIL] {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
