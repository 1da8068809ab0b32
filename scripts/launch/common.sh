# shellcheck shell=bash
# Sourced by the launchers beside it.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(cd "$here/../.." && pwd)"
DRY_RUN=""

# Prints the comment at the top of the launcher.
usage() {
  sed -n '2,/^[^#]/{/^#/!q; s/^# \{0,1\}//; p}' "$0"
}

refuse() {
  echo "$1" >&2
  exit 2
}

# Runs a command, or prints it, quoted for a shell.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

need() {
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] ||
      refuse "$name is not set; see $(basename "$0") --help."
  done
}

# All of these clouds restrict resource names in the same way.
check_name() {
  [[ "$NAME" =~ ^[a-z]([a-z0-9-]{0,37}[a-z0-9])?$ ]] ||
    refuse "NAME is '$NAME'; it must be at most 39 lower-case letters, digits and dashes, starting with a letter and not ending with a dash."
}

# Only commits run elsewhere, so the record of a run can name its code.
need_commit() {
  [ -z "$(git -C "$repository" status --porcelain --untracked-files=no)" ] ||
    refuse "The repository has changes that are not committed; commit them, so that the run can name its code."
}

# Prints the files that a command names, one a line: without a kind (text:FILE) and a
# variant (FILE:quick), if they exist in the repository or look like files of it.
files_of() (
  cd "$repository" || exit
  printf '%s\n' "${@:2}" | tr '=:' '\n' | while read -r path; do
    if [ -e "$path" ] || [[ "$path" =~ ^[^/].*\.(py|npz|npy|tsv|txt)$ ]]; then
      echo "$path"
    fi
  done
)

# Refuses a command that names a file which only this machine has; the pod gets those that
# match PATTERN from elsewhere.
need_committed() { # need_committed PATTERN COMMAND ...
  local path
  while read -r path; do
    # shellcheck disable=SC2053  # a pattern
    [[ "$path" == $1 ]] || git -C "$repository" cat-file -e "HEAD:$path" 2>/dev/null ||
      refuse "'$path' is not in the commit that the pod gets; commit it, or see docs/pods.md, 'Your own configs and data'."
  done < <(files_of "${@:2}")
}
