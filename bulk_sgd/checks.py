"""Checks of arguments and config fields: one sentence with name, value and range."""

import inspect
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def integer(
    name: str,
    value: Any,
    low: int,
    high: int | None = None,
    why: str = "",
    static: bool = True,
):
    """Raises ValueError unless `value` is an int with `low <= value <= high`.

    `why` says what the upper bound is. A traced value is refused where `static`, as
    something that fixes shapes, and else passes unchecked.
    """
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    if why:
        bounds += f" ({why})"
    if isinstance(value, jax.core.Tracer):
        if not static:
            return
        raise ValueError(
            f"{name} is a traced array; it fixes array shapes and must be a Python "
            f"integer, {bounds}. Under optax.inject_hyperparams name it in static_args."
        )
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be an integer, {bounds}.")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {value}; it must be {bounds}.")


def at_least(name: str, value: Any, low: float):
    """Raises ValueError unless `value` is a finite number, at least `low`."""
    if isinstance(value, jax.core.Tracer):
        return  # not known before the program runs
    number = _number(value)
    if not (math.isfinite(number) and number >= low):
        raise ValueError(f"{name} is {value!r}; it must be a number, at least {low}.")


def between(name: str, value: Any, low: float, high: float, below: bool = False):
    """Raises ValueError unless `value` is a number from `low` to (`below`) `high`."""
    if isinstance(value, jax.core.Tracer):
        return  # not known before the program runs
    number = _number(value)
    if not low <= number <= high or (below and number == high):
        bound = "below" if below else "to"
        raise ValueError(
            f"{name} is {value!r}; it must be a number from {low} {bound} {high}."
        )


def scale(name: str, value: Any, filters: bool = False):
    """Raises ValueError unless `value` is a finite number or a schedule.

    A function whose first parameter is named `eigenvalues` is a spectral filter, which
    passes only where `filters`.
    """
    allowed = "a finite number or a schedule of the step"
    if filters:
        allowed += ", or a filter of the eigenvalues"
    if is_filter(value) and not filters:
        raise ValueError(
            f"{name} is a function of eigenvalues; it must be {allowed}, for only "
            "dominant_scale can be a spectral filter."
        )
    if callable(value):
        return
    traced = isinstance(value, jax.core.Tracer)
    if not (value.shape == () if traced else math.isfinite(_number(value))):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")


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
    """Raises ValueError unless `tree` has leaves, all of them of real floats.

    Raises it too where one is split over Explicit axes of a mesh: XLA, and not the
    caller of each operation, decides how what is computed here lies on the devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} has no arrays; it must have at least one.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = getattr(dtype, "name", dtype) or type(leaf).__name__
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is of type {kind}; it must be a "
                "floating point array."
            )
        aval = getattr(leaf, "aval", None)  # none in NumPy's
        spec = aval.sharding.spec if aval is not None else ()
        if any(axis is not None for axis in spec):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is split over Explicit axes of a "
                f"mesh, {spec}; they must be Auto axes, as of jax.make_mesh(…, "
                "axis_types=(jax.sharding.AxisType.Auto, …))."
            )


def one_of(name: str, value: Any, allowed: Iterable[str]):
    """Raises ValueError unless `value` is among the `allowed` names."""
    names = sorted(allowed)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(names)}.")


def _number(value) -> float:
    """`value` as a float, NaN where it is none."""
    if isinstance(value, str | bytes) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
