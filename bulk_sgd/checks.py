"""Checks of arguments and config fields: one sentence with name, value and range."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax


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
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= low):
        raise ValueError(f"{name} is {value!r}; it must be a number, at least {low}.")


def between(name: str, value: Any, low: float, high: float, below: bool = False):
    """Raises ValueError unless `value` is a number from `low` to (`below`) `high`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high or (below and number == high):
        bound = "below" if below else "to"
        raise ValueError(
            f"{name} is {value!r}; it must be a number from {low} {bound} {high}."
        )


def one_of(name: str, value: Any, allowed: Iterable[str]):
    """Raises ValueError unless `value` is among the `allowed` names."""
    names = sorted(allowed)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(names)}.")
