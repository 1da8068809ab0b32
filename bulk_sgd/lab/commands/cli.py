"""What the command line programs share: flags, signals and refusals."""

import ast
import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import pathlib
import re
import signal
import sys
import traceback

from absl import app, flags

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.devices import distributed, signals

flags.disclaim_key_flags()  # the --help of a program shows flags defined here
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false"}


def run(main, *required: str, positional: bool = False):
    """Parses the flags and calls `main`; the flags `required` must be set.

    With `positional`, `main` also takes words that are not flags.
    """
    options = {"required": required, "positional": positional}
    app.run(main, flags_parser=functools.partial(parse, **options))


def parse(argv, required=(), positional=False):
    """Parses the flags; wrong ones end the process as `refuse` does."""
    argv = _with_config_file(argv)
    try:
        rest = flags.FLAGS(_with_tuples(_last_of_each(argv)))
    except (flags.Error, OSError) as error:
        refuse(_illegal_value(error, argv))
    except ModuleNotFoundError as error:
        refuse(
            f"--config imports {error.name}, which is not found from "
            f"{str(pathlib.Path.cwd())!r}; run from the folder that holds it."
        )
    except (AttributeError, KeyError) as error:
        refuse(_in_config_file(error) or _unknown_field(error, argv))
    for name in required:
        if flags.FLAGS[name].value is None:
            refuse(f"--{name} is missing.")
    if len(rest) > 1 and not positional:
        refuse(f"Unexpected arguments {rest[1:]}; flags are set as --name=value.")
    return rest


def define_distributed():
    """Defines the flag that makes a process one of several."""
    about = "Join the other processes of the job; auto does where one is detected."
    flags.DEFINE_enum("distributed", "off", ["auto", "on", "off"], about)


def prepare():
    """Lets an ended job leave its record, and quiets JAX and Orbax."""
    signals.install()
    # The first warns of every kind of device that the machine lacks; Orbax logs every
    # step of a save to "absl".
    for name in ("jax._src.xla_bridge", "jax._src.distributed", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def refusing():
    """Ends the process with one sentence on wrong input."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(error)


@contextlib.contextmanager
def reporting(workdir):
    """Prints a line that names the workdir if a signal ends the process.

    Where another process of the job is lost, this one ends in that way.
    """
    try:
        yield
    except Exception as error:
        distributed.settle(type(error))
        raise
    except SystemExit as error:
        if isinstance(error.code, int) and error.code > 128:
            name = signal.Signals(error.code - 128).name
            print(f"interrupted by {name}: {workdir}", file=sys.stderr)
        raise


def refuse(error):
    """Ends the process with the sentence of an error and status 2."""
    print(error, file=sys.stderr)
    sys.exit(2)


def _last_of_each(argv) -> list[str]:
    """The words without fields that are set again further on.

    For a number the last value counts, but ml_collections joins the values of a tuple.

    >>> _last_of_each(["main", "--config.a=(5,)", "--config.a", "(7,)"])
    ['main', '--config.a', '(7,)']
    """
    found, fields = [], set()
    value = []  # the last word, if it is none of the form --name
    for word in reversed(argv):
        if not re.match(r"--?[a-zA-Z]", word):
            found, value = found + value, [word]
            continue
        name, is_joined, _ = word.lstrip("-").partition("=")
        if name not in fields:
            found += [*value, word]
        elif is_joined:
            found += value
        if name.startswith("config."):
            fields.add(name)
        value = []
    return [*found, *value][::-1]


def _with_tuples(argv) -> list[str]:
    """The words with the values of fields that are tuples as Python writes them.

    >>> _with_tuples(["main", "--config.arms=sgd,scales(1,2)", "--config.seed=5"])
    ['main', "--config.arms=('sgd', 'scales(1,2)')", '--config.seed=5']
    """
    found = []
    for before, word in zip(["", *argv], argv):
        name, is_joined, value = word.lstrip("-").partition("=")
        if _is_tuple(before.lstrip("-")):
            word = str(_as_tuple(word))
        elif is_joined and _is_tuple(name):
            word = f"--{name}={_as_tuple(value)}"
        found.append(word)
    return found


def _is_tuple(name: str) -> bool:
    """Whether a flag sets a field that is a tuple by default."""
    top, *groups = name.split(".")
    value = config_lib.default() if top == "config" else None
    for group in groups:
        value = value.get(group) if hasattr(value, "get") else None
    return isinstance(value, tuple)


def _as_tuple(text: str) -> tuple:
    """The items of `(5, 7)`, `5,7` or `sgd,scales(0.5,2)`."""
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    inner = text[1:-1] if re.fullmatch(r"\(.*\)|\[.*\]", text) else text
    items = re.split(r",(?![^()]*\))", inner)  # not inside of parentheses
    return tuple(item.strip("'\" ") for item in items if item.strip())


def _with_config_file(argv) -> list[str]:
    """The words with the whole path of --config, which its `__file__` then is.

    Refuses one without get_config(), where ml_collections has a traceback. Makes the
    files beside it importable; `_Beside` defines the order.
    """
    # A field, --config.x=…, is no file; a variant follows a colon.
    words = "\0".join(argv)
    found = re.search(r"\0--?config[=\0]([^\0:]*)", words)
    if found is None:
        return argv  # as in --help, or refused as missing
    if early := re.search(r"\0(--?(no)?config\.[^\0=]*)", words[: found.start()]):
        refuse(f"{early[1]} comes before --config; put --config=FILE before it.")
    path = pathlib.Path(found[1])
    config = f"--config is {str(path)!r}"
    required = "it must be a Python file with get_config()"
    if not path.is_file():
        folder = str(pathlib.Path.cwd())
        refuse(f"{config}, which is no file in {folder!r}; {required}.")
    try:
        content = path.read_text("utf-8")
        ast.parse(content)
    except (SyntaxError, ValueError) as error:
        where = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        refuse(f"{config}; {required}, but is not Python{where}.")
    if "get_config" not in content:
        refuse(f"{config}, which does not define get_config().")
    path = path.resolve()
    sys.path.append(str(path.parent))
    sys.meta_path.insert(0, _Beside(str(path.parent)))
    if ":" not in str(path):  # where a variant would begin
        words = f"{words[: found.start(1)]}{path}{words[found.end(1) :]}"
    return words.split("\0")


class _Beside(importlib.abc.MetaPathFinder):
    """Prefers a module beside the config to one of its name in the current folder.

    Python finds all other modules in the order of the path: first in the current
    folder, then among installed packages, then beside the config.
    """

    def __init__(self, folder: str):
        self._folder = folder

    def find_spec(self, name, path, target=None):
        """The module beside the config, if the current folder has one of its name."""
        if path is not None:
            return None
        find = importlib.machinery.PathFinder.find_spec
        folders = str(pathlib.Path.cwd()), self._folder
        here, beside = (find(name, [folder]) for folder in folders)
        both = here and beside and here.origin and beside.origin
        return beside if both else None


def _illegal_value(error, argv) -> str:
    """The sentence of a flag's value of another type, or of a config that fails."""
    for flag in argv[1:]:
        name, _, value = flag.lstrip("-").partition("=")
        known = name in flags.FLAGS and flags.FLAGS[name].flag_type()
        if known in _KINDS and str(error).startswith(f"flag --{name}={value}: "):
            return f"--{name} is {value!r}; it must be {_KINDS[known]}."
    # ml_collections tells the whole traceback of a config file that fails.
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


def _unknown_field(error, argv) -> str:
    """The sentence of ml_collections, and the groups that it leaves out."""
    field, *hints = _words(error).splitlines()
    name = field.strip("'")
    for flag in argv:
        found = re.match(rf"--config\.((?:\w+\.)*{re.escape(name)})\b", flag)
        if found:
            field = f"'{found[1]}'"
    if ".options." in field:
        field += "; set it in get_config first"
    return ". ".join([f"--config has no field {field}", *hints])


def _words(error) -> str:
    """What an error says, without the quotes of a KeyError."""
    while isinstance(error.args[0], Exception):  # AttributeError(KeyError(…))
        error = error.args[0]
    return str(error.args[0])


def _in_config_file(error) -> str | None:
    """A sentence about an error in a line of the config file; None if it has none."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and frame.filename != __file__
    ]
    if not own:
        return None
    where = f"--config: {own[-1].filename}, line {own[-1].lineno}, {own[-1].line!r}"
    problem = _words(error)
    field = re.search(r'Key "(.*?)" does not exist', problem)
    if not field:
        return f"{where}: {type(error).__name__}: {problem}."
    meant = re.search(r'Did you mean "(.*?)" instead', problem)
    hint = f"; did you mean {meant[1]!r}?" if meant else "."
    return f"{where}: there is no field {field[1]!r}{hint}"
