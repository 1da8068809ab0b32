#!/usr/bin/env bash
# Runs on each worker of a pod, called by tpu_vm.sh.
#
#   scripts/launch/worker.sh start NAME BUCKET COMMAND ...
#   scripts/launch/worker.sh outcome|status|stop NAME
#
# `start` returns at once. The command's output goes to runs/NAME.log, its exit status to
# runs/NAME.status. Only worker 0 reads and writes the workdir runs/NAME: it fetches it
# from BUCKET/NAME at the start, and copies it back every SYNC seconds (default 60) and at
# the end. Every worker fetches DATA, if set, into data/ first.
set -euo pipefail
source "$(dirname "$0")/common.sh"
cd "$repository"

index() {
  [ -n "${WORKER_INDEX:-}" ] && echo "$WORKER_INDEX" && return
  curl -sf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

running() { [ -f "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }

keep() { # copies to the bucket; files that the run moved are moved there too
  gcloud storage rsync --recursive --quiet --delete-unmatched-destination-objects \
    "$workdir" "$1/$name"
}

supervise() {
  local bucket="$1" worker child copying status=0
  shift
  worker="$(index)"
  if [ -n "${DATA:-}" ]; then
    mkdir -p data
    gcloud storage rsync --recursive --quiet "$DATA" data
  fi
  if [ "$worker" = 0 ]; then
    mkdir -p "$workdir"
    # Otherwise an empty workdir would overwrite the bucket.
    if gcloud storage ls "$bucket/$name/" >/dev/null 2>&1; then
      gcloud storage rsync --recursive --quiet "$bucket/$name" "$workdir"
    fi
  fi
  PATH="$repository/.venv/bin:$PATH" "$@" --workdir="$workdir" --distributed=on &
  child=$!
  trap 'kill -TERM $child' TERM
  if [ "$worker" = 0 ]; then
    while sleep "${SYNC:-60}"; do
      keep "$bucket" || echo "could not copy to $bucket"
    done &
    copying=$!
  fi
  while true; do # a signal ends `wait` before it ends the command
    wait $child && status=0 || status=$?
    kill -0 $child 2>/dev/null || break
  done
  if [ "$worker" = 0 ]; then
    kill $copying
    keep "$bucket" || { echo "could not copy to $bucket" && status=74; }
  fi
  echo "$status" >"runs/$name.status"
}

action="${1:-}"
name="${2:-}"
[ -n "$name" ] || { usage && exit 2; }
workdir="runs/$name" pid="runs/$name.pid"
case "$action" in
  start)
    running && refuse "$name is already running here; stop it first."
    mkdir -p runs
    rm -f "runs/$name.status"
    shift 2
    nohup setsid "$0" supervise "$name" "$@" >"runs/$name.log" 2>&1 </dev/null &
    echo $! >"$pid"
    ;;
  supervise)
    shift 2
    supervise "$@"
    ;;
  outcome) cat "runs/$name.status" 2>/dev/null || running || echo 1 ;;
  status)
    if running; then
      echo "running: $(tail -n 1 "runs/$name.log")"
    else
      echo "ended with status $(cat "runs/$name.status" 2>/dev/null || echo unknown)"
    fi
    ;;
  stop) ! running || kill -TERM "$(cat "$pid")" ;;
  *) usage && exit 2 ;;
esac
