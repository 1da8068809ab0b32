# Sourced by the launchers beside it.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(cd "$here/../.." && pwd)"
DRY_RUN=""

# The text of a launcher is its usage: the comment that it opens with.
usage() {
  sed -n '2,/^[^#]/{/^#/!q; s/^# \{0,1\}//; p}' "$0"
}

refuse() {
  echo "$1" >&2
  exit 2
}

# Runs a command, or prints it so that it could be pasted.
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
      refuse "$name is not set; see $(basename "$0") --help for what it is."
  done
}

# A resource name, which all of these clouds restrict in the same way.
check_name() {
  [[ "$NAME" =~ ^[a-z][a-z0-9-]{0,38}$ ]] ||
    refuse "NAME is '$NAME'; it must be lower-case letters, digits and dashes, a letter first, at most 39."
}

# What runs elsewhere is a commit, so that the record of a run can name it.
need_commit() {
  [ -z "$(git -C "$repository" status --porcelain --untracked-files=no)" ] ||
    refuse "The repository has changes that are not committed; commit them, and the run can name what it ran."
}
