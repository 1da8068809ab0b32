#!/usr/bin/env bash
# Submits a run, or the cells of a sweep, to Slurm: one process per GPU.
#
#   scripts/launch/slurm.sh [--dry-run] -- COMMAND ... --workdir=FOLDER
#   CELLS=24 scripts/launch/slurm.sh -- python -m bulk_sgd.sweep --config=FILE \
#     --workdir=FOLDER
#
# COMMAND runs in the repository, as it is then, with --distributed=on appended. With CELLS
# the script submits a job array, and each job runs one cell, --cell=$SLURM_ARRAY_TASK_ID.
# Slurm queues a job again after a preemption or at its time limit; the job then resumes
# from FOLDER, which must be on storage that all nodes share. --dry-run prints the script
# instead of submitting it.
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
for field in NODES GPUS CPUS ${CELLS:+CELLS} ${PARALLEL:+PARALLEL}; do
  [[ "${!field}" =~ ^[1-9][0-9]*$ ]] ||
    refuse "$field is '${!field}'; it must be a whole number, at least 1."
done

[[ " $*" == *" --workdir"[=\ ]?* ]] ||
  refuse "The command has no --workdir=FOLDER; a job that is queued again, and every cell, goes on from there."
[ -x "$PYTHON_ENV/bin/python" ] ||
  refuse "PYTHON_ENV is '$PYTHON_ENV', which has no bin/python; it must be a virtual environment with bulk_sgd[lab,cuda]."
while read -r path; do
  (cd "$repository" && [ -e "$path" ]) ||
    refuse "'$path' is not in '$repository', where the command runs."
done < <(files_of "$@")

words="$(printf '%q ' "$@")--distributed=on"
array="" log="%x-%j.log" job='$SLURM_JOB_ID'
if [ -n "$CELLS" ]; then
  array="#SBATCH --array=0-$((CELLS - 1))${PARALLEL:+%$PARALLEL}"
  log="%x-%A_%a.log" job='${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID'
  words+=' --cell="$SLURM_ARRAY_TASK_ID"'
fi
options=""
for field in PARTITION ACCOUNT QOS; do
  [ -z "${!field:-}" ] || options+="#SBATCH --${field,,}=${!field}"$'\n'
done

# Slurm assigns GPUs to the node, not to tasks: JAX picks a GPU by the number of its task,
# which fails if a task sees only its own GPU. --cpus-per-task is said twice because srun
# does not inherit it in Slurm 22.05 and 23.02. In an array, one task has the number of all.
#
# Slurm sends SIGTERM to the tasks and to this script, which has to outlive their save. It
# passes no SIGTERM on: srun would kill the tasks, and their second signal ends them.
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
job=\"$job\" again=
trap 'again=1; scancel --signal=TERM \"\$job\"' USR1
trap : TERM
srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task=$CPUS $words &
# A signal ends \`wait\`, not the tasks.
while kill -0 \$! 2>/dev/null; do wait \$!; done
wait \$!
status=\$?
if [ -n \"\$again\" ] && [ \$status != 0 ]; then
  echo \"Time limit reached; the job is queued again.\"
  scontrol requeue \"\$job\"
  exit 0
fi
exit \$status
"

if [ -n "$DRY_RUN" ]; then
  echo "$script"
else
  sbatch <<<"$script"
fi
