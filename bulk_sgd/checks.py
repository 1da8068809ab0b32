"""Checks of arguments and config fields: one sentence with name, value and range."""

import inspect
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
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ArgumentError(name, f"is {value!r}; it must be an integer, {bounds}.")
    if number < low or (high is not None and number > high):
        raise ArgumentError(name, f"is {value}; it must be {bounds}.")


def at_least(name: str, value: Any, low: float):
    """Raises ArgumentError unless `value` is finite and at least `low`, or traced."""
    if isinstance(value, jax.core.Tracer):
        return
    number = _number(value)
    if not (math.isfinite(number) and number >= low):
        raise ArgumentError(name, f"is {value!r}; it must be a number, at least {low}.")


def between(name: str, value: Any, low: float, high: float, below: bool = False):
    """Raises ArgumentError unless `low <= value <= high`, or `value` is traced.

    Where `below`, `high` itself is refused too.
    """
    if isinstance(value, jax.core.Tracer):
        return
    number = _number(value)
    if not low <= number <= high or (below and number == high):
        bound = "below" if below else "to"
        raise ArgumentError(
            name, f"is {value!r}; it must be a number from {low} {bound} {high}."
        )


def scale(name: str, value: Any, filters: bool = False):
    """Raises ArgumentError unless `value` is a finite number or a schedule.

    Where `filters`, a spectral filter passes too: see `is_filter`.
    """
    allowed = "a finite number or a schedule of the step"
    if filters:
        allowed += ", or a filter of the eigenvalues"
    if is_filter(value) and not filters:
        raise ArgumentError(
            name,
            f"is a function of eigenvalues; it must be {allowed}, for only "
            "dominant_scale can be a spectral filter.",
        )
    if callable(value):
        return
    traced = isinstance(value, jax.core.Tracer)
    if not (value.shape == () if traced else math.isfinite(_number(value))):
        raise ArgumentError(name, f"is {value!r}; it must be {allowed}.")


def is_filter(value: Any) -> bool:
    """Whether `value` is a spectral filter: its first parameter is `eigenvalues`."""
    if not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters
    except ValueError:  # some builtins have no signature
        return False
    return next(iter(parameters), None) == "eigenvalues"


def floating(name: str, tree: Any):
    """Raises ArgumentError unless `tree` has leaves, all of them of real floats.

    It also refuses a leaf that is split over Explicit axes of a mesh, for there each
    operation has to name the layout of its result; here XLA chooses it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ArgumentError(name, "has no arrays; it must have at least one.")
    for path, leaf in leaves:
        leaf_name = f"{name}{jax.tree_util.keystr(path)}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = getattr(dtype, "name", dtype) or type(leaf).__name__
            raise ArgumentError(
                leaf_name, f"is of type {kind}; it must be a floating point array."
            )
        aval = getattr(leaf, "aval", None)  # NumPy arrays have none
        spec = aval.sharding.spec if aval is not None else ()
        if any(axis is not None for axis in spec):
            raise ArgumentError(
                leaf_name,
                f"is split over Explicit axes of a mesh, {spec}; they must be Auto "
                "axes, as from jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto,"
                " …)).",
            )


def one_of(name: str, value: Any, allowed: Iterable[str]):
    """Raises ArgumentError unless `value` is among the `allowed` names."""
    names = sorted(allowed)
    if value not in names:
        raise ArgumentError(
            name, f"is {value!r}; it must be one of {', '.join(names)}."
        )


def _number(value) -> float:
    """`value` as a float, NaN where it is none."""
    if isinstance(value, str | bytes) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
