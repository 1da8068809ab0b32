"""Curvature on replicas: devices that share the params and split the examples.

Inside `jax.pmap`, and inside `jax.shard_map` with `check_vma=False`, a derivative of
`jax.lax.pmean(loss)` is a derivative of each replica's own loss: `psum` is its own
transpose there. The mean over the replicas of all such products is the product of the
mean loss, forwards, backwards and by differences. The same holds for a named axis of
`jax.vmap`. With `check_vma`, its default, `shard_map` differentiates the mean itself.
"""

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.operators import Wrapped, as_pytree
from bulk_sgd.curvature.second_derivatives import equations

_COLLECTIVES = "psum", "all_gather", "reduce_scatter"  # beginnings of their names
_ANONYMOUS = "_internal_pmap_axis_name"  # of a pmap without axis_name


def shared_axes(jaxpr) -> tuple:
    """The axes of replicas that a program, traced here, takes sums over."""
    found = set()
    for equation in equations(jaxpr):
        whole = equation.params.get("axis_index_groups") is None
        if whole and equation.primitive.name.startswith(_COLLECTIVES):
            found |= set(jax.tree.leaves(_axes(equation)))
    return tuple(sorted(filter(_has_replicas, found), key=str))


def mean(vector, axes: tuple):
    """The mean of a vector over axes of replicas."""
    return jax.lax.pmean(vector, axes) if axes else vector


def agreeing(matvec):
    """`matvec`, whose products raise ArgumentError unless replicas have the same."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name in mesh.manual_axes
        if mesh.shape[name] > 1 and name != _ANONYMOUS and _has_replicas(name)
    )
    return Wrapped(_agreed, as_pytree(matvec), static=(axes,)) if axes else matvec


def _agreed(matvec, vector, axes):
    known = shared_axes(jax.make_jaxpr(lambda v: matvec(v))(vector))
    for name in axes:
        if name not in known:
            raise checks.ArgumentError(
                "value_fn",
                f"takes no mean over {name!r}, an axis of pmap, or of shard_map with "
                "check_vma=False, so that each replica would find its own subspace; it "
                f"must be like jax.lax.pmean(loss(params, batch), {name!r}). Replicas "
                "that train independently belong under jax.vmap.",
            )
    return matvec(vector)


def _axes(equation):
    return [equation.params.get(name) for name in ("axes", "axis_name")]


def _has_replicas(name) -> bool:
    """Whether an axis is bound here, and JAX does not track what varies along it."""
    try:
        index = jax.lax.axis_index(name)
    except (NameError, TypeError):  # bound inside the program, or a number of an axis
        return False
    return jax.typeof(index) == jax.typeof(jnp.zeros((), index.dtype))
