#!/usr/bin/env bash
# Builds the documentation site; a warning is an error. Arguments go to mkdocs.
#
#   scripts/docs.sh                     into site/
#   scripts/docs.sh --site-dir=FOLDER
set -euo pipefail
extras=lab,dev,docs
source "$(dirname "$0")/environment.sh"

NO_MKDOCS_2_WARNING=1 mkdocs build --strict "$@"
