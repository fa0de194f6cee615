#!/usr/bin/env bash
# Test and time the kernels on the NVIDIA GPU of this machine: one command of under ten minutes, nothing to install.
#
#     bench/gpu.sh              # writes bench/results/<device>.json, and a copy into $OUT where that is set
#     bench/gpu.sh --dry-run    # the same steps on the CPU at tiny sizes
#
# Needs Python 3.11 or newer with torch, NumPy, SciPy and rich; pydantic for RFAD; pytest and Hypothesis for the tests. The package itself
# need not be installed. Exit status: 0, 1 if a test failed or a result was wrong, 2 if there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if [[ " $* " != *" --dry-run "* ]]; then
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        echo "There is no GPU here that $python can use through torch: bench/gpu.sh measures nothing without one." >&2
        exit 2
    fi
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || true
fi

# The folders of the repository form one package only when they lie below one another.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/kernel_distill"
for path in api/*.py api/_bench; do
    ln -s "$PWD/$path" "$tree/kernel_distill/"
done
for layer in kernels solver nn_baselines; do
    ln -s "$PWD/$layer" "$tree/kernel_distill/$layer"
done
export PYTHONPATH="$tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

timeout --kill-after=5 570 "$python" bench/gpu.py "$@"
