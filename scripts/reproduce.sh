#!/usr/bin/env bash
# Runs the whole study: the ablation axes, two tuned sweeps, one report. A second call
# resumes an interrupted one. Usage: scripts/reproduce.sh [--preset=cpu|gpu] [--workdir=FOLDER]
set -euo pipefail
preset=cpu workdir=
for argument in "$@"; do
  case $argument in
    --preset=*) preset=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;;
    *) echo "$0: unknown argument $argument; known: --preset, --workdir." >&2; exit 2 ;;
  esac
done
case $preset in
  cpu | gpu) ;;
  *) echo "$0: --preset is '$preset'; it must be cpu or gpu." >&2; exit 2 ;;
esac
[ -z "$workdir" ] || workdir=$(realpath -m "$workdir")
extras=lab
source "$(dirname "$0")/environment.sh"
workdir=${workdir:-$PWD/runs/study-$preset}
# Axes share programs: compile each once.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

axes="seeds interpolation plane curvature learning_rate batch_size rank refresh warm_up
  curvature_data width_depth loss optimizer"
worst=0

# run AXIS FLAG…: one sweep, in the folder AXIS
run() {
  local axis=$1 start=$SECONDS status=0
  shift
  echo "== $axis"
  python -m bulk_sgd.sweep "$@" --workdir="$workdir/$axis" \
    --prefixes="$workdir/prefixes" || status=$?
  case $status in
    0) ;;
    1) echo "$axis failed, or cells of it did; the report says which." >&2 ;;
    2) echo "$axis was refused, for the reason above." >&2 ;;
    *) exit "$status" ;; # interrupted
  esac
  worst=$((status > worst ? status : worst))
  echo "$axis took $((SECONDS - start)) seconds"
}

for axis in $axes; do
  run "$axis" --config="configs/ablations/$axis.py:$preset"
done
for optimizer in sgd momentum; do
  run "pays_$optimizer" --config="configs/pays/mnist.py:$optimizer" \
    --config.arms="sgd,scales(0.25,2),accelerated"
done
python -m bulk_sgd.report --workdir="$workdir"
exit "$worst"
