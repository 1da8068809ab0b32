"""The loss along a line or over a plane through the parameters."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.hessian import check_loss
from bulk_sgd.curvature.operators import as_pytree
from bulk_sgd.linalg import basis


def loss_slice(value_fn, params, directions, offsets):
    """Returns the loss at the points of a grid, θ + Σ_i a_i d_i.

    One direction gives a line, two give a plane. Directions are not normalised; with
    unit vectors the offsets are distances. One compiled program evaluates the points in
    turn. Calls share it if their losses come from the same functions and have the same
    shapes.

    Args:
      value_fn: `value_fn(params) -> scalar`, such as an `Objective`.
      params: pytree of floating point arrays, the point θ.
      directions: sequence of pytrees like `params`, the d_i.
      offsets: sequence of arrays `(p_i,)`, the values of a_i for each direction.

    Returns:
      The losses, an array of shape `(p_1, p_2, …)`.

    Raises:
      TypeError: if `value_fn` does not return a real scalar.
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> loss = lambda x: x[0] ** 2 + 10 * x[1] ** 2
      >>> axes = jnp.eye(2)
      >>> offsets = jnp.array([-1.0, 0.0, 1.0])
      >>> print(bulk_sgd.loss_slice(loss, jnp.zeros(2), axes[:1], [offsets]))
      [1. 0. 1.]
      >>> print(bulk_sgd.loss_slice(loss, jnp.zeros(2), axes, [offsets, offsets]))
      [[11.  1. 11.]
       [10.  0. 10.]
       [11.  1. 11.]]
    """
    checks.floating("params", params)
    check_loss(value_fn, params)
    directions = checks.sequence("directions", directions)
    offsets = [
        checks.reals(f"offsets[{index}]", axis, 1)
        for index, axis in enumerate(checks.sequence("offsets", offsets))
    ]
    if not directions or len(directions) != len(offsets):
        raise ValueError(
            f"offsets are {len(offsets)} arrays for {len(directions)} directions; "
            "there must be one array per direction, and at least one direction."
        )
    for index, direction in enumerate(directions):
        checks.vector(f"directions[{index}]", direction, params)
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)
    points = jnp.stack([x.ravel() for x in jnp.meshgrid(*offsets, indexing="ij")], 1)
    losses = _losses(as_pytree(value_fn), params, rows, points)
    return losses.reshape([len(axis) for axis in offsets])


@jax.jit
def _losses(value_fn, params, rows, points):
    def loss(point):
        shift = basis.combine(point, rows)
        moved = jax.tree.map(lambda x, d: x + d, params, shift)
        return value_fn(basis.cast_like(moved, params))

    return jax.lax.map(loss, points)
