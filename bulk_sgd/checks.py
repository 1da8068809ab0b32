"""Checks of arguments and config fields: one sentence with name, value and range."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class ArgumentError(ValueError):
    """A wrong argument or config field `name`; `problem` completes the sentence."""

    def __init__(self, name: str, problem: str):
        problem = " ".join(problem.split())  # an array is shown in several lines
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def __reduce__(self):
        return type(self), (self.name, self.problem)


def integer(
    name: str,
    value: Any,
    low: int,
    high: int | None = None,
    why: str = "",
    static: bool = True,
):
    """Raises ArgumentError unless `value` is an int with `low <= value <= high`.

    `why` says where the bound comes from. A traced value is refused if `static`, which
    means that it fixes array shapes; otherwise a scalar passes.
    """
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    if why:
        bounds += f" ({why})"
    if not static and _is_traced(name, value):
        return
    if isinstance(value, jax.core.Tracer):
        raise ArgumentError(
            name,
            "is a traced array; it fixes array shapes and must be a Python integer, "
            f"{bounds}. Under optax.inject_hyperparams name it in static_args.",
        )
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise ArgumentError(name, f"is {value!r}; it must be an integer, {bounds}.")
    if found < low or (high is not None and found > high):
        raise ArgumentError(name, f"is {value}; it must be {bounds}.")


def at_least(name: str, value: Any, low: float = -math.inf, above: bool = False):
    """Raises ArgumentError unless `value` is finite and at least `low`, or traced.

    Where `above`, `low` itself is refused too.
    """
    if _is_traced(name, value):
        return
    found = number(value)
    if not (math.isfinite(found) and found >= low) or (above and found == low):
        bound = f", at least {low}" if math.isfinite(low) else ""
        bound = f" above {low}" if above else bound
        raise ArgumentError(name, f"is {value!r}; it must be a number{bound}.")


def flag(name: str, value: Any):
    """Raises ArgumentError unless `value` is true or false, and known."""
    if number(value) not in (0, 1):
        raise ArgumentError(name, f"is {value!r}; it must be True or False.")


def between(name: str, value: Any, low: float, high: float, below: bool = False):
    """Raises ArgumentError unless `low <= value <= high`, or `value` is traced.

    Where `below`, `high` itself is refused too.
    """
    if _is_traced(name, value):
        return
    found = number(value)
    if not low <= found <= high or (below and found == high):
        bound = "below" if below else "to"
        raise ArgumentError(
            name, f"is {value!r}; it must be a number from {low} {bound} {high}."
        )


def numeric(name: str, tree: Any):
    """Raises ArgumentError where `tree` has arrays of text or of objects."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", np.dtype(type(leaf)))
        if getattr(dtype, "kind", "V") in "OSUMm":
            problem = f"is of type {dtype}; it must be an array of numbers."
            raise ArgumentError(at(name, path), problem)


def floating(name: str, tree: Any):
    """Raises ArgumentError unless `tree` has leaves, all of them of real floats.

    It also raises it as `auto_axes` does.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ArgumentError(name, "has no arrays; it must have at least one.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = getattr(dtype, "name", dtype) or type(leaf).__name__
            cure = (
                "jnp.asarray makes one of a number."
                if isinstance(leaf, int | float)
                else "Partition it off, with None in its place, or leave it out of a "
                "transform by mask=."
            )
            raise ArgumentError(
                at(name, path),
                f"is of type {kind}; it must be a floating point array. {cure}",
            )
    auto_axes(name, tree)


def auto_axes(name: str, tree: Any):
    """Raises ArgumentError for a leaf that is split over Explicit axes of a mesh.

    There each operation has to name the layout of its result; here XLA chooses it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        aval = getattr(leaf, "aval", None)  # NumPy arrays have none
        spec = aval.sharding.spec if aval is not None else ()
        if any(axis is not None for axis in spec):
            raise ArgumentError(
                at(name, path),
                f"is split over Explicit axes of a mesh, {spec}; they must be Auto "
                "axes, as from jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto,"
                " …)).",
            )


def like(name: str, tree: Any, other: Any, whose: str):
    """Raises ArgumentError unless two pytrees agree in structure and shapes."""

    def form(tree):  # the user's node classes may not define equality
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    if form(tree) != form(other):
        shapes, wanted = (jax.tree.map(jnp.shape, x) for x in (tree, other))
        problem = f"has the shapes {shapes}; it must be like {whose}, {wanted}."
        raise ArgumentError(name, problem)


def vector(name: str, tree: Any, other: Any, whose: str = "the params"):
    """Raises ArgumentError unless `tree` is of real floats, and `like` another."""
    floating(name, tree)
    like(name, tree, other, whose)


def reals(name: str, value: Any, *ndim: int):
    """`value` as an array of real numbers.

    Raises ArgumentError where it is none, or has another number of axes than `ndim`.
    """
    allowed = f"a {'- or '.join(map(str, ndim))}-dimensional array of real numbers"
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError):
        found = None
    if found is None or jnp.iscomplexobj(found):
        raise ArgumentError(name, f"is {value!r}; it must be {allowed}.")
    if found.ndim not in ndim:
        problem = f"is of shape {found.shape}; it must be {allowed}."
        raise ArgumentError(name, problem)
    return found


def sequence(name: str, value: Any) -> list:
    """`value` as a list; raises ArgumentError where it cannot be one."""
    if isinstance(value, str | dict) or not np.iterable(value):
        raise ArgumentError(name, f"is {value!r}; it must be a sequence.")
    return list(value)


def key(value: Any):
    """The PRNG key of an argument `key`, a fixed one for None.

    Raises ArgumentError unless it is a single key, as of `jax.random.key` or
    `jax.random.PRNGKey`.
    """
    if value is None:
        return jax.random.key(0)
    dtype, ndim = getattr(value, "dtype", None), getattr(value, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    legacy = dtype == jnp.uint32 and ndim == 1
    if not legacy and not (typed and ndim == 0):
        problem = f"is {value!r}; it must be one PRNG key, such as jax.random.key(0)."
        raise ArgumentError("key", problem)
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]):
    """Raises ArgumentError unless `value` is among the `allowed` names."""
    names = sorted(allowed)
    if not isinstance(value, str) or value not in names:
        raise ArgumentError(
            name, f"is {value!r}; it must be one of {', '.join(names)}."
        )


def _is_traced(name, value) -> bool:
    """Whether a number is traced; raises ArgumentError where it is no scalar."""
    if not isinstance(value, jax.core.Tracer):
        return False
    if value.shape:
        problem = f"is a traced array of shape {value.shape}; it must be a scalar."
        raise ArgumentError(name, problem)
    return True


def is_data(value: Any) -> bool:
    """Whether `value` is an array or a number."""
    return isinstance(value, _DATA)


def describe(value: Any) -> str:
    """The dtype and shape of a leaf, such as float32[2]."""
    kind = getattr(value, "dtype", type(value).__name__)
    return f"{kind}{list(np.shape(value))}"


_DATA = jax.Array, np.ndarray, np.generic, bool, int, float, complex


def at(name: str, path) -> str:
    """The name of a leaf of the argument `name`."""
    return f"{name}{jax.tree_util.keystr(path)}"


def number(value: Any) -> float:
    """`value` as a float, NaN where it is none."""
    if isinstance(value, str | bytes) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
