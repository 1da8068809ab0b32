#!/usr/bin/env bash
# Runs the whole study: the ablation axes, two tuned sweeps, one report. A second call
# resumes an interrupted one. Usage: scripts/reproduce.sh [--preset=cpu|gpu]
# [--workdir=FOLDER] [--jobs=SWEEPS AT A TIME, by default one per core, on a GPU 1]
set -euo pipefail
preset=cpu workdir='' jobs=''
for argument in "$@"; do
  case $argument in
    --preset=*) preset=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit ;;
    *) echo "$0: unknown argument $argument; known: --preset, --workdir, --jobs." >&2; exit 2 ;;
  esac
done
case $preset in
  cpu | gpu) ;;
  *) echo "$0: --preset is '$preset'; it must be cpu or gpu." >&2; exit 2 ;;
esac
case $jobs in
  0* | *[!0-9]*) echo "$0: --jobs is '$jobs'; it must be a number from 1 on." >&2; exit 2 ;;
esac
[ -z "$workdir" ] || workdir=$(realpath -m "$workdir")
extras=lab
source "$(dirname "$0")/environment.sh"
workdir=${workdir:-$PWD/runs/study-$preset}
# Axes share programs: compile each once.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
exec python scripts/run_study.py "$preset" "$workdir" "$jobs"
