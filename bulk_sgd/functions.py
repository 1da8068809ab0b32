"""Functions of the user: what they take, how they fail, and what they return."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks


class FunctionError(TypeError, ValueError):
    """A function of the user that is none, fails, or returns something else."""


def check(name: str, fn: Any, *arguments: str):
    """Raises FunctionError unless `fn` is a function whose data, if any, are arrays.

    A callable pytree, such as a `jax.tree_util.Partial`, passes through `jit` with its
    leaves as arguments of the program. Given the names of `arguments`, the function
    must take so many.
    """
    if not callable(fn):
        kind = type(fn).__name__
        raise FunctionError(f"{name} is of type {kind}; it must be a function.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(fn):
        if leaf is not fn and not checks.is_data(leaf):
            raise FunctionError(
                f"{checks.at(name, path)} is a {type(leaf).__name__} among the arrays "
                "of a callable pytree; jit takes arrays alone, so wrap a function in "
                "jax.tree_util.Partial, or name it in a plain function."
            )
    known = signature(fn) if arguments else None
    try:
        known and known.bind(*arguments)
    except TypeError as error:
        call = f"{name}({', '.join(arguments)})"
        raise FunctionError(f"{name} cannot be called as {call}: {error}.") from None


def signature(fn: Any) -> inspect.Signature | None:
    """The signature of a function, None where it says none, as some builtins."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return None


def call(name: str, fn: Any, *arguments, hint: str = ""):
    """`fn(*arguments)`; an error says that the function `name` fails, and a `hint`."""
    try:
        return fn(*arguments)
    except (checks.ArgumentError, FunctionError):
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        kind = type(error).__name__
        raise FunctionError(f"{name} fails with {kind}: {reason}{hint}.") from error


def returned(name: str, value: Any, allowed: str, scalar: bool = False):
    """Raises FunctionError unless the function `name` returned one real array.

    A `scalar` must be of floating point.
    """
    dtype = jnp.result_type(value) if checks.is_data(value) else None
    if dtype is None:
        right = False
    elif scalar:
        right = jnp.issubdtype(dtype, jnp.floating) and not jnp.ndim(value)
    else:
        right = not jnp.issubdtype(dtype, jnp.complexfloating)
    if not right:
        got = map(checks.describe, jax.tree.leaves(value))
        raise FunctionError(
            f"{name} returned {', '.join(got) or 'nothing'}; it must return {allowed}, "
            "without auxiliary outputs."
        )
