#!/usr/bin/env bash
# Runs a command on all workers of a TPU pod, requested as a queued resource.
#
#   scripts/launch/tpu_vm.sh [--dry-run] ACTION [-- COMMAND ...]
#
#   create     request the pod; the request is queued
#   wait       until the pod is active (fails if it is refused or preempted)
#   setup      put this commit on all workers and install it
#   run        start COMMAND on all workers; it outlives the connection
#   logs       follow worker 0 (WORKER=2: worker 2)
#   status     show the state of the pod, and of the command on every worker
#   stop       interrupt the command, which records that
#   delete     give the pod back
#   list       show all queued resources of the zone
#   up         create, wait, setup and run
#   watch      up, and again after every preemption, until COMMAND has ended
#
# COMMAND runs in the repository, with --workdir=runs/NAME and --distributed=on appended.
# Worker 0 fetches BUCKET/NAME into runs/NAME at the start and copies it back every minute,
# so the same `run` resumes after a preemption. Every worker fetches DATA into data/ before.
#
# Environment:
#   NAME       of the pod and of the run (default bulk-sgd)
#   ZONE       (required)
#   TYPE       accelerator type (default v5litepod-16)
#   RUNTIME    TPU software (default v2-alpha-tpuv5-lite)
#   BUCKET     gs://... for files that must survive the pod (required by run)
#   DATA       gs://... with your own data, as in --config.data.name=data/FILE (default none)
#   SPOT       1 for preemptible capacity, 0 for on-demand (default 1)
#   PROJECT    (default of gcloud)
#   POLL       seconds between looks at the state (default 30)
#
#   ZONE=us-west4-a BUCKET=gs://my-bucket/runs scripts/launch/tpu_vm.sh watch -- \
#     python -m bulk_sgd.sweep --config=configs/ablations/rank.py
set -euo pipefail
source "$(dirname "$0")/common.sh"

NAME="${NAME:-bulk-sgd}" TYPE="${TYPE:-v5litepod-16}" SPOT="${SPOT:-1}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}" POLL="${POLL:-30}" WORKER="${WORKER:-0}"

where() {
  where=(--zone="$ZONE")
  [ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")
}

queued() { run gcloud compute tpus queued-resources "$@" "${where[@]}"; }

on_workers() { # on_workers WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2" "${where[@]}"
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  local spot=()
  [ "$SPOT" = 0 ] || spot=(--spot)
  queued create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" "${spot[@]}"
}

wait_for_pod() {
  if [ -n "$DRY_RUN" ]; then
    queued describe "$NAME" --format='value(state.state)'
    return
  fi
  local now before=""
  while true; do
    now="$(state)"
    [ "$now" = "$before" ] || echo "$NAME is $now" >&2
    before="$now"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | ABSENT | DELETING)
        echo "$NAME is $now and will not become active; delete it and create another." >&2
        return 1
        ;;
    esac
    sleep "$POLL"
  done
}

# Once, so that a watched run goes on with the commit that it began with.
pack() {
  need_commit
  bundle="$(mktemp -d)/bulk_sgd.bundle"
  trap 'rm -rf "${bundle%/*}"' EXIT
  run git -C "$repository" bundle create "$bundle" HEAD
}

setup() {
  # Joined by &&, because bash ignores `set -e` where a caller tests the status. uv brings
  # Python, because the image's own is older than 3.11.
  run gcloud compute tpus tpu-vm scp "$bundle" "$NAME:bulk_sgd.bundle" --worker=all \
    "${where[@]}" &&
    on_workers all 'set -e; rm -rf bulk_sgd; git clone -q bulk_sgd.bundle bulk_sgd
cd bulk_sgd; python3 -m pip install -q --user uv
~/.local/bin/uv venv -q --python 3.12 .venv
~/.local/bin/uv pip install -q --python .venv/bin/python -e ".[lab,tpu]"'
}

check_command() { # check_command ACTION COMMAND ...
  [ $# -gt 1 ] || refuse "$1 needs a command: $(basename "$0") $1 -- python -m ..."
  need BUCKET
  local field
  for field in BUCKET ${DATA:+DATA}; do
    [[ "${!field}" == gs://?* ]] ||
      refuse "$field is '${!field}'; it must be a place in a bucket, gs://..."
  done
  need_committed "@(runs${DATA:+|data})?(/*)" "${@:2}"
}

start() {
  local words
  words="$(printf '%q ' scripts/launch/worker.sh start "$NAME" "$BUCKET" "$@")"
  on_workers all "cd bulk_sgd && ${DATA:+DATA=$(printf %q "$DATA") }$words"
}

delete() { queued delete "$NAME" --force --quiet; }

up() {
  create && wait_for_pod && setup && start "$@"
}

# The exit status of the command on worker 0; nothing while it runs.
outcome() {
  on_workers 0 "cd bulk_sgd && scripts/launch/worker.sh outcome $NAME" 2>/dev/null
}

watch() {
  local now ended
  if [ -n "$DRY_RUN" ]; then
    up "$@"
    return
  fi
  while true; do
    # An active pod is watched: another machine may have set it up.
    if [ "$(state)" != ACTIVE ] && ! up "$@" && [ "$(state)" = ACTIVE ]; then
      echo "Setting up $NAME failed; the pod is given back." >&2
      delete
      return 1
    fi
    while now="$(state)" && [ "$now" = ACTIVE ]; do
      ended="$(outcome || true)"
      if [ -n "$ended" ]; then
        echo "The command ended with status $ended; the pod is given back." >&2
        delete
        return "$ended"
      fi
      sleep "$POLL"
    done
    echo "$NAME is $now; it is deleted and requested again." >&2
    delete || true
    sleep "$POLL"
  done
}

main() {
  case "${1:-}" in
    "" | -h | --help) usage && exit 0 ;;
    --dry-run) DRY_RUN=1 && shift && main "$@" && return ;;
  esac
  local action="$1" command=()
  shift
  if [ "${1:-}" = "--" ]; then
    shift
    command=("$@")
  elif [ $# -gt 0 ]; then
    refuse "'$1' is not known here; a command comes after --."
  fi
  case "$action" in
    create | wait | setup | run | logs | status | stop | delete | list | up | watch) ;;
    *) refuse "'$action' is not an action; see $(basename "$0") --help." ;;
  esac
  need ZONE
  check_name
  where
  case "$action" in run | up | watch) check_command "$action" "${command[@]}" ;; esac
  case "$action" in setup | up | watch) pack ;; esac
  case "$action" in
    create) create ;;
    wait) wait_for_pod ;;
    setup) setup ;;
    run) start "${command[@]}" ;;
    logs) on_workers "$WORKER" "tail -n 100 -F bulk_sgd/runs/$NAME.log" ;;
    status)
      queued describe "$NAME" --format='value(state.state)'
      on_workers all "cd bulk_sgd && scripts/launch/worker.sh status $NAME"
      ;;
    stop) on_workers all "cd bulk_sgd && scripts/launch/worker.sh stop $NAME" ;;
    delete) delete ;;
    list) queued list ;;
    up) up "${command[@]}" ;;
    watch) watch "${command[@]}" ;;
  esac
}

main "$@"
