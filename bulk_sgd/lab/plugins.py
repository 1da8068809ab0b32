"""What a config names: an entry of a registry, or a user's own by its import path.

`module:name` is any function or class that Python can import, also one of a file beside
the config. It is called with the options of its group of fields, and with what else its
parameters name.
"""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import operator
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping

import jax

from bulk_sgd import checks
from bulk_sgd.curvature import blocks


class PluginError(ValueError):
    """An error in a user's code: one sentence, and the traceback of that code."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A function that equals those made from the same words, to share programs."""

    words: str
    fn: Callable = dataclasses.field(compare=False)

    def __call__(self, *arguments):
        return self.fn(*arguments)


def is_path(name: str) -> bool:
    """Whether a name in a config is an import path."""
    # The kinds of data that have a place, not a module.
    return bool(re.fullmatch(r"(?!(tfds|tsv|text|tokens):)[\w.]+:[\w.]+", name))


def entry(field: str, name: str, known: Mapping, own: Callable):
    """The entry `name` of a registry, or the one that `own` makes of an import path.

    Raises ArgumentError, which names the field, where there is none.
    """
    if is_path(name):
        return own(name)
    if name not in known:
        allowed = f"one of {', '.join(sorted(known))}, or " * bool(known)
        allowed += "the import path of your own, module:name"
        raise checks.ArgumentError(field, f"is {name!r}; it must be {allowed}.")
    return known[name]


def load(field: str, path: str):
    """The function or class at an import path.

    Raises ValueError where there is none, and PluginError where its module fails.
    """
    module, _, name = path.partition(":")
    with telling(field, path):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise PluginError(
                f"{field} is {path!r}, but there is no module {error.name}; it must be "
                "a file beside the config, or installed."
            ) from None
    try:
        return operator.attrgetter(name)(found)
    except AttributeError:
        place = getattr(found, "__file__", module)
        raise PluginError(f"{field} is {path!r}, but {place} has no {name}.") from None


def _parameters(field, path) -> tuple[list[inspect.Parameter], bool]:
    """The named parameters of a user's function, and whether it takes any others."""
    fn = load(field, path)
    with telling(field, path):
        # The metaclasses of flax and Equinox hide the parameters of a class.
        own = inspect.isclass(fn)
        parameters = inspect.signature(fn.__init__ if own else fn).parameters
    parameters = list(parameters.values())[own:]  # without self
    named = [
        x for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)
    ]
    return named, any(x.kind is x.VAR_KEYWORD for x in parameters)


def taken(field: str, path: str) -> set[str]:
    """The names of the arguments that a user's function takes."""
    return {x.name for x in _parameters(field, path)[0]}


def call(field: str, path: str, options: Mapping, /, **offered):
    """Calls a user's function with its options and the `offered` that it names."""
    fn, options = load(field, path), dict(options)
    named, takes_any = _parameters(field, path)
    names = {x.name for x in named}
    group = field.rpartition(".")[0]
    if unknown := not takes_any and sorted(options.keys() - names):
        raise PluginError(
            f"{group}.options has {', '.join(unknown)}, which {path} does not take; it "
            f"takes {', '.join(sorted(names))}."
        )
    needed = {x.name for x in named if x.default is x.empty}
    if missing := sorted(needed - offered.keys() - options.keys()):
        known = [*offered, f"fields of {group}.options"]
        raise PluginError(
            f"{field} is {path!r}, which needs {', '.join(missing)}; a run gives it "
            f"{', '.join(known)}."
        )
    given = {name: value for name, value in offered.items() if name in names}
    with telling(field, path, given.get("params")):
        return fn(**given | options)


_TRACED = {
    jax.errors.ConcretizationTypeError: "jnp.where or jax.lax.cond instead of if",
    jax.errors.TracerArrayConversionError: "jnp in place of np",
}


@contextlib.contextmanager
def telling(field: str, name: str, params=None):
    """Tells an error in the code of an import path as such; leaves others alone.

    Of a missing key it tells the `params` that are there.
    """
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        if not is_path(name):
            raise
        use = [text for kind, text in _TRACED.items() if isinstance(error, kind)]
        hint = "".join(f" JAX traces it: use {text}." for text in use)
        if isinstance(error, KeyError) and params is not None:
            known = blocks.paths(params)
            more = f", … ({len(known)})" * (len(known) > 20)
            hint = f" The params are {', '.join(known[:20])}{more}."
        raise PluginError(
            f"{field} is {name!r}, which fails with {type(error).__name__}.{hint}\n"
            + _trace(error, name.partition(":")[0], ends=not use)
        ) from error


def _trace(error, module: str, ends: bool) -> str:
    """The traceback through the user's files, or through an installed module.

    It `ends` with what the error says, or before.
    """
    told = traceback.TracebackException.from_exception(error)
    own = [frame for frame in told.stack if not _is_installed(frame.filename)]
    is_inside = lambda frame: pathlib.Path(frame.filename).stem in module.split(".")
    told.__notes__ = None  # JAX's, about the frames that it leaves out
    told.stack[:] = own or list(filter(is_inside, told.stack))
    lines = list(told.format(chain=False))
    return "".join(lines if ends else [lines[0], *told.stack.format()]).rstrip()


def _is_installed(filename: str) -> bool:
    path = pathlib.Path(filename)
    places = pathlib.Path(__file__).parents[1], pathlib.Path(ast.__file__).parent
    below = any(place in path.parents for place in places)
    return below or filename.startswith("<") or bool(_INSTALLED & {*path.parts})


def paths(config) -> list[str]:
    """The import paths in a config of an experiment."""
    names = [config.data.name, config.model.name, config.loss.name]
    names += [config.optimizer.name, config.subspace.solver, *config.measures.own]
    return [name for name in names if is_path(name)]


def sources(config) -> dict[str, str]:
    """The text of each module in `paths` that is a file of the user, by its name."""
    found = {}
    for name in {path.partition(":")[0] for path in paths(config)} - {"__main__"}:
        module = importlib.import_module(name)
        file = pathlib.Path(getattr(module, "__file__", None) or "")
        if text := getattr(module, _TEXT, None):
            found[name] = text
        elif file.is_file() and not _INSTALLED & {*file.parts}:
            found[name] = file.read_text("utf-8")
    return found


def restore(texts: Mapping[str, str]):
    """Makes modules of `sources`, in place of any that have the same names."""
    for name, text in texts.items():
        module = sys.modules[name] = types.ModuleType(name)
        module.__dict__[_TEXT] = text
        exec(compile(text, f"{name}.py of the run", "exec"), module.__dict__)


_TEXT = "__text__"  # of a module that has no file
_INSTALLED = {"site-packages", "dist-packages"}


# `type X = …` has a name as well, but as an expression.
_NAMED = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def code(text: str) -> dict[str, str]:
    """The code of each function and class of a source; under "" the rest.

    It leaves out comments, `get_config` and `get_sweep`.
    """
    found = {"": ""}
    for node in ast.parse(text).body:
        name = node.name if isinstance(node, _NAMED) else ""
        found[name] = found.get(name, "") + ast.unparse(node) + "\n"
    return {k: v for k, v in found.items() if k not in ("get_config", "get_sweep")}


def words(config, *more) -> str:
    """A group of fields, and what else a function is made from, for `Function`."""
    return json.dumps([config.to_dict(), *more], sort_keys=True)
