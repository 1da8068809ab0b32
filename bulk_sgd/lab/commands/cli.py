"""What the command line programs share: flags, signals and refusals."""

import ast
import contextlib
import logging
import pathlib
import re
import signal
import sys

from absl import flags

from bulk_sgd.lab.devices import signals

flags.disclaim_key_flags()  # the --help of a program shows those defined here


def prepare():
    """Lets an ended job leave its record, and silences what JAX says at its start."""
    signals.install()
    # It reports every kind of device that the machine lacks.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    # Orbax tells every step of a save there.
    logging.getLogger("absl").setLevel(logging.WARNING)


def parse(argv):
    """Parses the flags; wrong ones end the process as `refuse` does."""
    _check_config_file(argv)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError) as error:
        missing = re.search(r"Flag --(\w+) must have a value", str(error))
        refuse(f"--{missing[1]} is missing." if missing else _illegal_value(error))
    except ModuleNotFoundError as error:
        refuse(
            f"--config imports {error.name}, which is not found from "
            f"{str(pathlib.Path.cwd())!r}; run from the folder that holds it."
        )
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that the config does not have.
        refuse(f"--config has no field {_with_groups(_reason(error), argv)}")


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
    """Ends the process with one sentence on wrong input."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(error)


@contextlib.contextmanager
def reporting(workdir):
    """Says it if a signal ends the process.

    Args:
      workdir: folder of what runs inside.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error.code, int) and error.code > 128:
            name = signal.Signals(error.code - 128).name
            print(f"interrupted by {name}: {workdir}", file=sys.stderr)
        raise


def _check_config_file(argv):
    """Refuses a --config that is no file with get_config(), before it is run."""
    # A field, --config.x=…, is no file; a variant follows a colon.
    words = "\n".join(argv)
    found = re.search(r"\n--?config[=\n]([^\n:]*)", words)
    if found is None:
        return  # as in --help, or refused as missing
    path = pathlib.Path(found[1])
    if not path.is_file():
        refuse(
            f"--config is {str(path)!r}, which is no file in "
            f"{str(pathlib.Path.cwd())!r}; it must be a Python file with get_config()."
        )
    try:
        content = path.read_text("utf-8")
        ast.parse(content)
    except (SyntaxError, ValueError) as error:
        where = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        refuse(
            f"--config is {str(path)!r}; it must be a Python file with get_config(), "
            f"but is not Python{where}."
        )
    if "get_config" not in content:
        refuse(f"--config is {str(path)!r}, which does not define get_config().")


def _illegal_value(error):
    """What absl says of a value of another type, as one sentence."""
    found = re.fullmatch(r"flag --([^=]+)=(.*?): (.*)", str(error))
    for sign, kind in (
        ("for int()", "an integer"),
        ("to float", "a number"),
        ("Non-boolean", "true or false"),
    ):
        if found and sign in found[3]:
            return f"--{found[1]} is {found[2]!r}; it must be {kind}."
    return error


def _reason(error) -> str:
    """The end of an error, where its cause is named, without what led there."""
    if isinstance(error, str):
        return error
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    lines = str(error.args[0] if len(error.args) == 1 else error).strip().splitlines()
    if lines[0].startswith("'"):  # a field, and perhaps one that is meant
        return ". ".join(lines)
    return re.sub(r"^\w+Error: ", "", lines[-1].strip())


def _with_groups(reason: str, argv) -> str:
    """A reason that starts with a field, with the groups that a flag has before it."""
    name = reason.split("'")[1] if reason.startswith("'") else ""
    for flag in argv:
        path = flag.partition("=")[0].removeprefix("--config.").split(".")
        if name in path:
            whole = ".".join(path[: path.index(name) + 1])
            return reason.replace(f"'{name}'", f"'{whole}'", 1)
    return reason


def refuse(error):
    """Ends the process with the sentence of an error and status 2."""
    print(_reason(error), file=sys.stderr)
    sys.exit(2)
