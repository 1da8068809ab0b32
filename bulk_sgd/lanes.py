"""Conditionals that stay branches under `vmap`."""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(predicate):
    """The predicate, or under `vmap` whether it holds in any lane, unbatched.

    A batched predicate would turn `lax.cond` into a select that computes both branches
    at every step. Where the lanes may differ, the branch must do for each of them.

    Args:
      predicate: bool scalar.

    Returns:
      A bool scalar, equal in all lanes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bulk_sgd.lanes import any_lane
      >>> jax.vmap(any_lane)(jnp.array([False, True])).tolist()
      [True, True]
    """
    return predicate


@any_lane.def_vmap
def _of_batch(axis_size, in_batched, predicate):
    del axis_size
    return any_lane(jnp.any(predicate) if in_batched[0] else predicate), False
