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
    means that it fixes array shapes; otherwise it passes unchecked.
    """
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    if why:
        bounds += f" ({why})"
    if isinstance(value, jax.core.Tracer):
        if not static:
            return
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


def at_least(name: str, value: Any, low: float):
    """Raises ArgumentError unless `value` is finite and at least `low`, or traced."""
    if isinstance(value, jax.core.Tracer):
        return
    found = number(value)
    if not (math.isfinite(found) and found >= low):
        raise ArgumentError(name, f"is {value!r}; it must be a number, at least {low}.")


def between(name: str, value: Any, low: float, high: float, below: bool = False):
    """Raises ArgumentError unless `low <= value <= high`, or `value` is traced.

    Where `below`, `high` itself is refused too.
    """
    if isinstance(value, jax.core.Tracer):
        return
    found = number(value)
    if not low <= found <= high or (below and found == high):
        bound = "below" if below else "to"
        raise ArgumentError(
            name, f"is {value!r}; it must be a number from {low} {bound} {high}."
        )


def floating(name: str, tree: Any):
    """Raises ArgumentError unless `tree` has leaves, all of them of real floats.

    It also refuses a leaf that is split over Explicit axes of a mesh, for there each
    operation has to name the layout of its result; here XLA chooses it.
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
                _at(name, path),
                f"is of type {kind}; it must be a floating point array. {cure}",
            )
        aval = getattr(leaf, "aval", None)  # NumPy arrays have none
        spec = aval.sharding.spec if aval is not None else ()
        if any(axis is not None for axis in spec):
            raise ArgumentError(
                _at(name, path),
                f"is split over Explicit axes of a mesh, {spec}; they must be Auto "
                "axes, as from jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto,"
                " …)).",
            )


def function(name: str, fn: Any):
    """Raises TypeError unless `fn` is a function whose data, if any, are arrays.

    A callable pytree, such as a `jax.tree_util.Partial`, passes through `jit` with its
    leaves as arguments of the program.
    """
    if not callable(fn):
        kind = type(fn).__name__
        raise TypeError(f"{name} is of type {kind}; it must be a function.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(fn):
        if leaf is not fn and not isinstance(leaf, _DATA):
            raise TypeError(
                f"{_at(name, path)} is a {type(leaf).__name__} among the arrays of a "
                "callable pytree; jit takes arrays alone, so wrap a function in "
                "jax.tree_util.Partial, or name it in a plain function."
            )


def like(name: str, tree: Any, other: Any, whose: str):
    """Raises ArgumentError unless two pytrees agree in structure and shapes."""

    def form(tree):  # the user's node classes may not define equality
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    if form(tree) != form(other):
        shapes, wanted = (jax.tree.map(jnp.shape, x) for x in (tree, other))
        problem = f"has the shapes {shapes}; it must be like {whose}, {wanted}."
        raise ArgumentError(name, problem)


def one_of(name: str, value: Any, allowed: Iterable[str]):
    """Raises ArgumentError unless `value` is among the `allowed` names."""
    names = sorted(allowed)
    if value not in names:
        raise ArgumentError(
            name, f"is {value!r}; it must be one of {', '.join(names)}."
        )


_DATA = jax.Array, np.ndarray, np.generic, bool, int, float, complex


def _at(name, path) -> str:
    return f"{name}{jax.tree_util.keystr(path)}"


def number(value: Any) -> float:
    """`value` as a float, NaN where it is none."""
    if isinstance(value, str | bytes) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
