"""The training binary: `python -m bulk_sgd.main --config=FILE --workdir=FOLDER`.

Any field can be set on the command line, `--config.subspace.rank=5`.
"""

import logging
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
        _refuse(f"Unexpected arguments {argv[1:]}; fields are set as --config.x=....")
    # So that an ended job leaves its record as interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # It reports every kind of device that the machine lacks.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

    from bulk_sgd import train  # after the flags: importing JAX takes seconds

    try:
        record = train.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except (ValueError, OSError) as error:
        _refuse(_reason(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    print(f"{record['status']}: {_WORKDIR.value}")


def run():
    """Entry point of the command line."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError) as error:
        _refuse(_reason(error))
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that the config does not have.
        _refuse(f"--config has no field {_reason(error)}")


def _reason(error) -> str:
    """The end of an error, where its cause is named, without what led there."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    lines = str(error.args[0] if len(error.args) == 1 else error).strip().splitlines()
    if lines[0].startswith("'"):  # a field, and perhaps one that is meant
        return ". ".join(lines)
    return lines[-1].strip()


def _refuse(error):
    print(error, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
