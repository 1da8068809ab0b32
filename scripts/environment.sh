# Sourced by the scripts beside it: sets up .venv in the repository and uses it.
# PYTHON names the interpreter to build it with (3.11 or newer).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON="${PYTHON:-python3}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "bulk_sgd needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1)." \
    "Set PYTHON to a newer one." >&2
  exit 1
}

# Installed again only when what to install has changed.
wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up .venv (about a minute)"
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable '.[dev,docs]' || exit 1
  echo "$wanted" >.venv/installed
fi
PATH="$PWD/.venv/bin:$PATH"
