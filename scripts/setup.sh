#!/usr/bin/env bash
# Makes .venv from requirements.lock: the same versions on every machine, checked by hash. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

if ! found="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"; then
  echo "setup: expected a Python 3.10, 3.11, 3.12 or 3.13; '$python' does not run. Name one: make setup PYTHON=python3.11" >&2
  exit 1
fi
case "$found" in
  3.10 | 3.11 | 3.12 | 3.13) ;;
  *)
    echo "setup: expected Python 3.10, 3.11, 3.12 or 3.13; '$python' is $found. Name another: make setup PYTHON=python3.11" >&2
    exit 1
    ;;
esac
if [ "$(uname -s)" != Linux ]; then
  echo "setup: expected Linux, got $(uname -s); in a container of Linux it works" >&2
  exit 1
fi
executable="$("$python" -c 'import sys; print(sys.executable)')"

if scripts/uv.sh --version >/dev/null; then
  [ -x .venv/bin/python ] || scripts/uv.sh venv --quiet -p "$executable" .venv
  scripts/uv.sh pip install --quiet -p .venv/bin/python --require-hashes -r requirements.lock
  scripts/uv.sh pip install --quiet -p .venv/bin/python --no-build-isolation --no-deps -e .
else
  echo "setup: uv cannot be had; going on with pip, which is slower" >&2
  [ -x .venv/bin/python ] || "$executable" -m venv .venv
  .venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
  .venv/bin/python -m pip install --quiet --no-build-isolation --no-deps -e .
fi
echo "setup: .venv is ready ($(.venv/bin/python --version))"
