#!/usr/bin/env bash
# Everything that only a GPU can show, in one file, under ten minutes on an H100, without network:
#
#     benchmarks/on_gpu.sh [FILE]              # on-gpu.md by default; exit code 1 if a check fails
#     SMALL=1 benchmarks/on_gpu.sh [FILE]      # the same lines with small sizes, on a CPU too
#
# What is checked, and how, is in benchmarks/on_gpu.py. PYTHON names another interpreter.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8   # cuBLAS repeats itself only with a workspace of its own
exec "${PYTHON:-python}" "$here/on_gpu.py" "${1:-on-gpu.md}" ${SMALL:+--small}
