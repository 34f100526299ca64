#!/usr/bin/env bash
# Runs uv: the one on the PATH, else the interpreter's, else one that is put into .uv/, a place of its own.
# Exits with 69 where uv cannot be had; the caller then does without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

# A name on the PATH is not enough: version managers leave shims there that lead nowhere.
if uv --version >/dev/null 2>&1; then
  exec uv "$@"
elif "$python" -m uv --version >/dev/null 2>&1; then
  exec "$python" -m uv "$@"
fi
if ! .uv/bin/uv --version >/dev/null 2>&1; then
  echo "uv is not here; putting it into .uv/" >&2
  rm -rf .uv
  if ! { "$python" -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv; } >&2; then
    rm -rf .uv
    exit 69
  fi
fi
exec .uv/bin/uv "$@"
