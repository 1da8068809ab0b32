#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, by xpk or by a JobSet manifest.
#
#   scripts/launch/gke.sh [--dry-run] ACTION [-- COMMAND ...]
#
#   image      build scripts/launch/Dockerfile with this commit and push it to IMAGE
#   xpk        submit with `xpk workload create`
#   manifest   print the JobSet, for `kubectl apply -f -`
#   apply      submit the JobSet
#   logs       follow the first worker
#   status     of the JobSet's pods
#   delete     the workload
#
# The script appends --workdir=/runs/NAME and --distributed=on to COMMAND. /runs is the
# persistent volume CLAIM, or under xpk STORAGE; a restarted job resumes from it. A command
# that is refused, with status 2, is not restarted.
#
# Environment:
#   NAME       of the workload (default bulk-sgd)
#   IMAGE      to push and to run (required, except by logs, status and delete)
#   CLUSTER    for xpk (required by xpk)
#   STORAGE    for xpk: what `xpk storage create` or `attach` made with --mount-point=/runs
#              and --readonly=false (required by xpk)
#   ZONE, PROJECT   for xpk (default those of xpk)
#   TYPE       for xpk (default v5litepod-16)
#   TPU        node selector of the JobSet (default tpu-v5-lite-podslice)
#   TOPOLOGY   (default 4x4)
#   WORKERS    hosts of the slice (default 4)
#   CHIPS      per host (default 4)
#   CLAIM      persistent volume claim, ReadWriteMany (default bulk-sgd-runs)
#   RESTARTS   after failures and preemptions (default 100)
set -euo pipefail
source "$(dirname "$0")/common.sh"

NAME="${NAME:-bulk-sgd}" IMAGE="${IMAGE:-}" TPU="${TPU:-tpu-v5-lite-podslice}"
TOPOLOGY="${TOPOLOGY:-4x4}" WORKERS="${WORKERS:-4}" CHIPS="${CHIPS:-4}"
CLAIM="${CLAIM:-bulk-sgd-runs}" RESTARTS="${RESTARTS:-100}"
TYPE="${TYPE:-v5litepod-16}"

case "${1:-}" in
  "" | -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac
action="${1:-}"
[ $# -eq 0 ] || shift
words=""
if [ "${1:-}" = "--" ] && [ $# -gt 1 ]; then
  shift
  words="$(printf '%q ' "$@")--workdir=/runs/$NAME --distributed=on"
elif [ $# -gt 0 ]; then
  refuse "'$1' is not known here; a command comes after --."
fi
check_name
# Kubernetes reads $$ as $, and would replace $(NAME).
words="${words//\$/\$\$}"
# As one quoted item of YAML.
# shellcheck disable=SC2034  # `manifest` reads it by its name
COMMAND="'${words//\'/\'\'}'"

manifest() {
  local text field
  text="$(grep -v '^#' "$here/jobset.yaml")"
  for field in NAME IMAGE TPU TOPOLOGY WORKERS CHIPS CLAIM RESTARTS COMMAND; do
    text="${text//"\${$field}"/"${!field}"}"
  done
  printf '%s\n' "$text"
}

pods="jobset.sigs.k8s.io/jobset-name=$NAME"
case "$action" in
  image)
    need IMAGE
    need_commit
    # A clone has what is committed, and nothing else that lies around.
    context="$(mktemp -d)"
    trap 'rm -rf "$context"' EXIT
    run git clone --quiet "$repository" "$context"
    run docker build -t "$IMAGE" -f "$context/scripts/launch/Dockerfile" "$context"
    run docker push "$IMAGE"
    ;;
  xpk | manifest | apply)
    need IMAGE
    [ -n "$words" ] || refuse "$action needs a command after --."
    need_committed "" "$@"
    if [ "$action" = xpk ]; then
      need CLUSTER STORAGE
      # `exec`, so that the command itself gets SIGTERM.
      run xpk workload create --workload="$NAME" --cluster="$CLUSTER" \
        --tpu-type="$TYPE" --num-slices=1 --docker-image="$IMAGE" \
        --docker-name=bulk-sgd --storage="$STORAGE" --max-restarts="$RESTARTS" \
        --restart-on-exit-codes=1 --termination-grace-period-seconds=120 \
        ${ZONE:+--zone="$ZONE"} ${PROJECT:+--project="$PROJECT"} \
        --command="mountpoint /runs && exec $words"
    elif [ "$action" = manifest ] || [ -n "$DRY_RUN" ]; then
      manifest
    else
      manifest | kubectl apply -f -
    fi
    ;;
  logs)
    run kubectl logs --follow --tail=-1 --container=bulk-sgd \
      --selector="$pods,batch.kubernetes.io/job-completion-index=0"
    ;;
  status) run kubectl get pods --selector="$pods" ;;
  delete) run kubectl delete jobset "$NAME" ;;
  *) refuse "'$action' is not an action; see $(basename "$0") --help." ;;
esac
