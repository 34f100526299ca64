#!/usr/bin/env bash
# Writes docker/requirements-x86.txt and docker/requirements-jetson.txt: what each image installs, with hashes. The
# versions are those of requirements.lock, without the developers' tools. Run it after `make lock`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compile() { # requirements file, Python, platform, then more of uv's words
  bash scripts/uv.sh pip compile --quiet --no-python-downloads --generate-hashes --no-header --no-annotate \
    --constraint requirements.lock --python-version "$2" --python-platform "$3" "${@:4}" pyproject.toml -o "$1"
}

# onnxruntime and onnxruntime-gpu are the same module in the same folder: only one of them, in the same version.
gpu="$(grep -oE '^onnxruntime==[^ ]+' requirements.lock | sort -V | tail -n 1 | sed 's/==/-gpu==/')"
compile docker/requirements-x86.txt 3.12 x86_64-manylinux_2_39 --extra gpu --no-emit-package onnxruntime \
  --constraint <(echo "$gpu")

# PyPI's torch for aarch64 has no kernels for a Jetson: NVIDIA's own takes its place, and JetPack has the CUDA
# libraries. What else torch needs stays in, and so does nvidia-ml-py, which is no library of CUDA.
left_out=()
names="$(grep -oE '^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==' requirements.lock | tr -d = | sort -u)"
for name in $(grep -v '^nvidia-ml-py$' <<<"$names"); do
  left_out+=(--no-emit-package "$name")
done
compile docker/requirements-jetson.txt 3.10 aarch64-manylinux_2_35 "${left_out[@]}"
