"""The scales of a transform: numbers, schedules of the step, and spectral filters."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions

_SPECTRAL = "eig", "lam", "λ"  # how names of eigenvalues begin, and none of steps
_CURE = "wrap a function of the eigenvalues in bulk_sgd.spectral_filter."


@dataclasses.dataclass(frozen=True)
class spectral_filter:
    """Marks a function of the eigenvalues, for `dominant_scale` of `scale_by_subspace`.

    A plain function is a schedule of the step. A filter is not callable, so
    `optax.inject_hyperparams` does not treat it as a schedule and leaves it unchanged.

    Attributes:
      fn: `fn(eigenvalues) -> factors`. The eigenvalues `(k,)` are in float32, or in
        float64 if a leaf of the params is float64. The factors are `(k,)` or a scalar.
        A direction that is not found yet has the eigenvalue 0; its factor has no
        effect.

    Raises:
      ValueError: if `fn` is not a function.

    Example:
      >>> import bulk_sgd
      >>> newton = bulk_sgd.spectral_filter(lambda eigenvalues: 1 / (1 + eigenvalues))
      >>> tx = bulk_sgd.scale_by_subspace(rank=10, dominant_scale=newton)
    """

    fn: Callable

    def __post_init__(self):
        if not callable(self.fn):
            problem = f"is {self.fn!r}; it must be a function of the eigenvalues."
            raise checks.ArgumentError("fn", problem)


def check(name: str, scale: Any, rank: int | None = None):
    """Raises ArgumentError unless `scale` is a finite number or a schedule.

    Given a `rank`, a `spectral_filter` passes too. A function is traced once.

    Raises:
      ValueError: for anything else, and a function that has the first parameter of a
        filter or fails on a scalar step.
      TypeError: if a function returns another shape.
    """
    allowed = "a finite number or a schedule of the step"
    if rank is not None:
        allowed += ", or a bulk_sgd.spectral_filter"
    if isinstance(scale, spectral_filter):
        if rank is None:
            problem = f"is a spectral filter; it must be {allowed}."
            raise checks.ArgumentError(name, problem)
        _trace(name, scale.fn, jax.ShapeDtypeStruct((rank,), jnp.float32))
    elif callable(scale):
        _refuse_spectral(name, scale)
        _trace(name, scale, jax.ShapeDtypeStruct((), jnp.int32))
    else:
        traced = isinstance(scale, jax.core.Tracer)
        finite = scale.shape == () if traced else math.isfinite(checks.number(scale))
        if not finite:
            raise checks.ArgumentError(name, f"is {scale!r}; it must be {allowed}.")


def factors(name: str, scale, state):
    """The factor, or one per eigenvalue, that a scale has in this state."""
    if isinstance(scale, spectral_filter):
        return _checked(name, scale.fn, state.subspace.eigenvalues)
    return _checked(name, scale, state.count) if callable(scale) else scale


def _refuse_spectral(name, schedule):
    known = functions.signature(schedule)
    first = next(iter(known.parameters if known else ()), "")
    if first.startswith(_SPECTRAL):
        raise checks.ArgumentError(
            name,
            f"is a function of {first!r}, but a function is a schedule of the step; "
            f"rename the parameter, or, for dominant_scale, {_CURE}",
        )


def _trace(name, fn, at):
    try:
        jax.eval_shape(lambda at: _checked(name, fn, at), at)
    except jax.errors.ConcretizationTypeError:
        return  # it branches on values, as it may outside of `jit`
    except (checks.ArgumentError, functions.FunctionError):
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        where, cure = "a scalar step", f"; for dominant_scale, {_CURE}"
        if at.shape:
            where, cure = f"{at.shape[0]} eigenvalues", "."
        raise checks.ArgumentError(name, f"fails on {where} ({error}){cure}") from error


def _checked(name, fn, at):
    found, shape = fn(at), jnp.shape(at)
    real = checks.is_data(found) and not jnp.iscomplexobj(found)
    if real and jnp.shape(found) in ((), shape):
        return found
    got = ", ".join(map(checks.describe, jax.tree.leaves(found))) or "nothing"
    raise functions.FunctionError(
        f"{name} returned {got}; it must return "
        + (f"one factor per eigenvalue, {shape}." if shape else f"a scalar, or {_CURE}")
    )
