#!/usr/bin/env bash
# What a GPU says of the package: the tests that need one, what gates cost, the speed and memory of
# the paper's networks. In at most 12 minutes, on one device, without a network:
#   tests/gpu.sh
# Commit the two files that it writes, tests/benchmarks/gpu.json and gpu.md. Where there is no CUDA
# device, or with --device cpu --tiny, the same runs on tiny sizes, for the script's own sake, and
# is written where --out says. PYTHON names the interpreter; python3 by default.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/tests/benchmarks/device.py" "$@"
