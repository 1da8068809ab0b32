"""Conditionals that stay branches under `vmap`."""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(predicate):
    """The predicate, or under `vmap` whether it holds in any lane, unbatched.

    A batched predicate would turn `lax.cond` into a select, which computes both
    branches at every step. The branch taken must be right for all lanes, even where
    they differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bulk_sgd.linalg.branches import any_lane
      >>> jax.vmap(any_lane)(jnp.array([False, True])).tolist()
      [True, True]
    """
    return predicate


@any_lane.def_vmap
def _of_batch(axis_size, in_batched, predicate):
    del axis_size
    return any_lane(jnp.any(predicate) if in_batched[0] else predicate), False


@jax.custom_batching.custom_vmap
def own_lane(predicate):
    """Whether this lane asked for the branch that `any_lane(predicate)` took.

    Without `vmap` it is the constant True, and XLA drops every select that depends on
    it: one between an old and a new basis would copy the old one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bulk_sgd.linalg.branches import any_lane, own_lane
      >>> def pick(x):
      ...     return jax.lax.cond(any_lane(x), lambda: own_lane(x), lambda: x)
      >>> jax.vmap(pick)(jnp.array([False, True])).tolist()
      [False, True]
    """
    return jnp.ones_like(predicate)


@own_lane.def_vmap
def _own_of_batch(axis_size, in_batched, predicate):
    del axis_size
    return predicate if in_batched[0] else own_lane(predicate), in_batched[0]


def cond(predicate, change, otherwise):
    """`change()` if `predicate` holds in any lane, else `otherwise()`.

    Under `vmap` a lane that only joins in takes what `change` returns, too: `change`
    gives each lane its own by `own_lane(predicate)` or by the predicate itself. So
    `change` is right for every lane; `otherwise` need not be. The constant True makes
    no conditional at all, so that XLA can share work between `change` and what is
    around it.
    """
    if predicate is True:
        return change()
    return jax.lax.cond(any_lane(predicate), change, otherwise)
