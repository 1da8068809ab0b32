#!/usr/bin/env bash
# Sets up, lints and tests, two files at a time. Arguments go to pytest.
#
#   scripts/test.sh            everyday suite
#   scripts/test.sh -m ''      with the slow tests, as CI runs it
set -euo pipefail
extras=lab,dev,docs
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
python -m pytest -n 2 --dist=loadfile "$@"
