"""What the command line programs share: flags, signals and refusals."""

import contextlib
import logging
import signal
import sys

from absl import flags


def prepare():
    """Lets an ended job leave its record, and silences what JAX says at its start."""
    # So that an ended job leaves its record as interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # It reports every kind of device that the machine lacks.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)


def parse(argv):
    """Parses the flags; wrong ones end the process as `refuse` does."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError) as error:
        refuse(error)
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that the config does not have.
        refuse(f"--config has no field {_reason(error)}")


def define_distributed():
    """The flag that makes a process one of several."""
    return flags.DEFINE_enum(
        "distributed",
        "off",
        ["auto", "on", "off"],
        "Join the other processes of the job: on, off, or auto, where one is detected.",
    )


@contextlib.contextmanager
def refusing():
    """Ends the process with one sentence on wrong input, and quietly on Ctrl-C."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _reason(error) -> str:
    """The end of an error, where its cause is named, without what led there."""
    if isinstance(error, str):
        return error
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    lines = str(error.args[0] if len(error.args) == 1 else error).strip().splitlines()
    if lines[0].startswith("'"):  # a field, and perhaps one that is meant
        return ". ".join(lines)
    return lines[-1].strip()


def refuse(error):
    """Ends the process with the sentence of an error and status 2."""
    print(_reason(error), file=sys.stderr)
    sys.exit(2)
