#!/usr/bin/env bash
# Exports a training's detection and classification checkpoints to ONNX and proves that they still answer alike (S4 E-6).
#   bash scripts/export_onnx.sh [CONFIG.yaml]      OPSET=18 goes before the configuration's export.opset (17)
# Prints `[OK] Exported: PATH` for each and `Report: PATH`; exits with 1, and says why, where any of them failed.
set -euo pipefail
CFG=${1:-config.yaml}
OPSET=${OPSET:-} # the default of 17 is the program's, as the configuration may name another
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON="$ROOT/.venv/bin/python"
fi
export OPSET PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m app.two_stage "$CFG"
