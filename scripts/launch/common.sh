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
  [[ "$NAME" =~ ^[a-z][a-z0-9-]{0,38}$ ]] ||
    refuse "NAME is '$NAME'; it must be at most 39 lower-case letters, digits and dashes, starting with a letter."
}

# Only commits run elsewhere, so the record of a run can name its code.
need_commit() {
  [ -z "$(git -C "$repository" status --porcelain --untracked-files=no)" ] ||
    refuse "The repository has changes that are not committed; commit them, so that the run can name its code."
}
