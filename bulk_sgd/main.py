"""The training binary: `python -m bulk_sgd.main --config=FILE --workdir=FOLDER`.

Any field can be set on the command line, `--config.subspace.rank=5`.
"""

import signal
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); FILE:VARIANT passes it a string."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and record.")


def main(argv):
    """Runs the experiment; wrong input ends it with one sentence and status 2."""
    if len(argv) > 1:
        sys.exit(f"Unexpected arguments {argv[1:]}; fields are set as --config.x=...")
    # So that an ended job leaves its record as interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    from bulk_sgd import train  # after the flags: importing JAX takes seconds

    try:
        record = train.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{record['status']}: {_WORKDIR.value}")


def run():
    """Entry point of the command line."""
    flags.mark_flags_as_required(["config", "workdir"])
    flags.FLAGS.set_default("verbosity", -1)  # JAX reports each backend it lacks
    app.run(main)


if __name__ == "__main__":
    run()
