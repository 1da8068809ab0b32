#!/usr/bin/env bash
# Submits a run, or the cells of a sweep, to Slurm: one process per GPU.
#
#   scripts/launch/slurm.sh [--dry-run] -- COMMAND ...
#   CELLS=24 scripts/launch/slurm.sh -- python -m bulk_sgd.sweep --config=FILE \
#     --workdir=FOLDER
#
# The script appends --distributed=on to COMMAND. With CELLS it submits a job array, and
# each job runs one cell, --cell=$SLURM_ARRAY_TASK_ID. Slurm queues a job again after a
# preemption or at its time limit; the job then resumes from the workdir, which must be on
# storage that all nodes share. --dry-run prints the script instead of submitting it.
#
# Environment:
#   NAME       of the job (default bulk-sgd)
#   NODES      (default 1)
#   GPUS       per node, one process each (default 1)
#   CPUS       per process (default 8)
#   TIME       limit (default 04:00:00)
#   CELLS      number of cells: python -m bulk_sgd.sweep --config=FILE --list_cells | wc -l
#   PARALLEL   cells at a time (default all)
#   PARTITION, ACCOUNT, QOS   for sbatch (defaults of the cluster)
#   PYTHON_ENV virtual environment to use (default .venv of the repository)
set -euo pipefail
source "$(dirname "$0")/common.sh"

NAME="${NAME:-bulk-sgd}" NODES="${NODES:-1}" GPUS="${GPUS:-1}" CPUS="${CPUS:-8}"
TIME="${TIME:-04:00:00}" CELLS="${CELLS:-}"
PYTHON_ENV="${PYTHON_ENV:-$repository/.venv}"

case "${1:-}" in
  "" | -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac
[ "${1:-}" = "--" ] && [ $# -gt 1 ] || refuse "The command comes after --; got '$*'."
shift
for field in NODES GPUS CPUS ${CELLS:+CELLS}; do
  [[ "${!field}" =~ ^[1-9][0-9]*$ ]] ||
    refuse "$field is '${!field}'; it must be a whole number, at least 1."
done

words="$(printf '%q ' "$@")--distributed=on"
array="" log="%x-%j.log"
if [ -n "$CELLS" ]; then
  array="#SBATCH --array=0-$((CELLS - 1))${PARALLEL:+%$PARALLEL}"
  log="%x-%A_%a.log"
  words+=' --cell="$SLURM_ARRAY_TASK_ID"'
fi
options=""
for field in PARTITION ACCOUNT QOS; do
  [ -z "${!field:-}" ] || options+="#SBATCH --${field,,}=${!field}"$'\n'
done

# Slurm assigns GPUs to the node, not to tasks: JAX picks a GPU by the number of its task,
# which fails if a task sees only its own GPU. In an array SLURM_JOB_ID requeues this task
# alone.
script="#!/usr/bin/env bash
#SBATCH --job-name=$NAME
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=$GPUS
#SBATCH --gpus-per-node=$GPUS
#SBATCH --cpus-per-task=$CPUS
#SBATCH --time=$TIME
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=$log
$array
${options}cd $(printf '%q' "$repository")
PATH=$(printf '%q' "$PYTHON_ENV")/bin:\$PATH
again() {
  echo \"Time limit reached; the job is queued again.\"
  kill -TERM \$child
  wait \$child
  scontrol requeue \"\$SLURM_JOB_ID\"
  exit 0
}
trap again USR1
trap 'kill -TERM \$child' TERM
srun --kill-on-bad-exit=1 --gpu-bind=none $words &
child=\$!
wait \$child
"

if [ -n "$DRY_RUN" ]; then
  echo "$script"
else
  sbatch <<<"$script"
fi
