# Sourced by the scripts beside it: installs bulk_sgd into .venv and puts that on PATH.
# PYTHON names the interpreter to build .venv with (3.11 or newer), `extras` what the
# script needs besides the library.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON="${PYTHON:-python3}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "bulk_sgd needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1)." \
    "Set PYTHON to a newer one." >&2
  exit 1
}

# .venv/installed has a line for each set of extras, with a checksum of the requirements.
wanted="$extras $(cat requirements/*.txt pyproject.toml | cksum)"
if ! grep -qsxF "$wanted" .venv/installed; then
  echo "Installing bulk_sgd[$extras] into .venv (a minute or two)"
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".[$extras]" || exit 1
  echo "$wanted" >>.venv/installed
fi
PATH="$PWD/.venv/bin:$PATH"
