#!/usr/bin/env bash
# Installs everything into .venv, lints, and tests two files at a time. Arguments go to
# pytest.
#
#   scripts/test.sh            everyday suite
#   scripts/test.sh -m ''      with the slow tests, like CI
set -euo pipefail
extras=lab,dev,docs
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder "$@"
