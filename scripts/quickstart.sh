#!/usr/bin/env bash
# Installs the lab into .venv, trains SGD, Dom-SGD, Bulk-SGD and points between them on the
# embedded MNIST subset, and writes a report. Takes minutes; a second call takes seconds.
#
#   scripts/quickstart.sh [--config.FIELD=VALUE ...]
#
# WORKDIR is the folder of the run (default runs/quickstart in the repository).
set -euo pipefail
here=$PWD
extras=lab
source "$(dirname "$0")/environment.sh"
workdir="${WORKDIR:-$PWD/runs/quickstart}"
case "$workdir" in /*) ;; *) workdir="$here/$workdir" ;; esac

python -m bulk_sgd.main --config=configs/mnist_mlp.py --workdir="$workdir" "$@"
python -m bulk_sgd.report --workdir="$workdir"
