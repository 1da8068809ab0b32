"""Units in which squares stay within the range of their dtype.

Squares of float32 underflow below 1e-19 and overflow above 1e19, long before the
numbers do. A quantity that needs them is computed in a unit near its size. Units are
powers of two, so that changing to one rounds nothing.
"""

import jax
import jax.numpy as jnp


def power_of_two(size):
    """A power of two near each size; 1 for zero and what is not finite."""
    size = jax.lax.stop_gradient(size)
    info = jnp.finfo(size.dtype)
    tiny = float(info.tiny)
    known = (size > 0) & jnp.isfinite(size)
    # Both ends have an inverse that is a normal number.
    size = jnp.clip(jnp.where(known, size, 1), tiny, 1 / tiny)
    return jax.lax.reduce_precision(size, info.nexp, 0)


def largest(vector):
    """The largest magnitude of the entries of a vector, 0 if it has none."""
    most = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(vector)]
    dtype = jnp.result_type(jnp.float32, *most)
    return jnp.max(jnp.stack([x.astype(dtype) for x in most]))


def root(square):
    """√x, with derivative 0 at 0."""
    positive = square != 0  # True for NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def length(numbers, axis=None):
    """Euclidean norm of a few numbers, along an axis if one is given."""
    unit = power_of_two(jnp.max(jnp.abs(numbers), axis=axis, keepdims=True))
    squares = jnp.sum((numbers / unit) ** 2, axis=axis, keepdims=True)
    return jnp.squeeze(unit * root(squares), axis)


def hold(squares, count: int):
    """Whether sums of `count` squares are right to rounding: none left the dtype."""
    info = jnp.finfo(squares.dtype)
    least = count * float(info.tiny) / float(info.eps)
    return (squares >= least) & jnp.isfinite(squares)


def for_squares(squares, count: int):
    """Units in which all is right where sums of `count` squares may not `hold`; else 1.

    They depend on the sign of the exponent alone: in either one, what left the dtype on
    its side has squares well inside.
    """
    squares = jax.lax.stop_gradient(squares)
    exponent = int(0.6 * jnp.finfo(squares.dtype).maxexp)
    unit = jnp.where(squares > 1, 2.0**exponent, 2.0**-exponent)
    return jnp.where(hold(squares, count), 1, unit).astype(squares.dtype)


def measured(vector, unit):
    """A vector in a unit, and the unit; a unit of 0 becomes that of the vector.

    It stays 0 for the zero vector, which fits all units.
    """
    size = largest(vector).astype(unit.dtype)
    own = jnp.where(size == 0, 0, power_of_two(size))
    unit = jnp.where(unit == 0, own, unit)
    factor = 1 / jnp.where(unit == 0, 1, unit)
    return jax.tree.map(lambda x: factor * x, vector), unit
