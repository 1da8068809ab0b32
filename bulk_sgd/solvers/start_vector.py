"""The start of a Krylov sequence: a given vector, or one made from a `Subspace`."""

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, units
from bulk_sgd.solvers.subspace import Subspace

# Weight of the random direction in a warm start, which alone finds an eigenvector that
# is orthogonal to the previous subspace. With 0.03 a solve on the MNIST MLP took one
# matvec less, and 20 of 20 solves missed such a vector.
_EXPLORATION = 1.0


def like(start):
    """The shapes and dtypes of the vectors of a solve from `start`."""
    start = basis.like(start.eigenvectors) if isinstance(start, Subspace) else start
    dtype = basis.working_dtype(start)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), start)


def pack(start, form, key):
    """The start vector in a form of `packing`, of length one.

    A random vector replaces a `start` that is zero or not finite.
    """
    if isinstance(start, Subspace):
        # A Krylov sequence favours large eigenvalues; inverse weights make up for it.
        size = jnp.abs(start.eigenvalues)
        size = size / units.power_of_two(jnp.max(size))
        weights = 1 / jnp.maximum(size, 1e-2)
        vector = basis.combine(weights, start.eigenvectors)
    else:
        vector = start
    vector = form.pack(basis.widen(vector))
    noise = basis.unit(form.random_normal(key))
    length = basis.norm(vector)
    usable = jnp.isfinite(length) & (length > 0)
    vector = basis.divide(vector, jnp.where(usable, length, 1))
    if isinstance(start, Subspace):
        vector = jax.tree.map(lambda x, n: x + _EXPLORATION * n, vector, noise)
    return basis.unit(basis.where(usable, vector, noise))
