"""How far eigenvectors turn, and on how few parameters they live.

Marjankowska, Modugno and Barucca, *Characterizing Optimizer-Dependent Training Dynamics
Through Hessian Eigenvector Displacement and Localization*, arXiv 2606.30226, follow
both along training. Only their abstract was available, so the formulas are the usual
ones. The null here is a random vector; theirs is a random Hessian of the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.subspace import Subspace, check_subspace


class Displacement(NamedTuple):
    """How far a subspace and its vectors have turned: 0 not at all, 1 at right angles.

    Attributes:
      vectors: `(k,)`, 1 − |⟨u_i, u_i'⟩| with u_i before and u_i' after, in the order of
        descending eigenvalues; NaN if a vector is missing. Entries can be large
        although `subspace` is small, because eigenvectors with close eigenvalues change
        places and rotate among themselves.
      subspace: scalar, 1 − ‖Uᵀ U'‖²_F / k, with k the rank of the smaller subspace: 0
        if the larger one contains it; NaN if a subspace is empty.
    """

    vectors: jax.Array
    subspace: jax.Array


def displacement(before: Subspace, after: Subspace) -> Displacement:
    """Returns how far a subspace and its vectors have turned.

    Args:
      before: a subspace, dense or in factors.
      after: another one with the same number of rows, rows of zeros included.

    Returns:
      The `Displacement`, in the dtype of the basis.

    Raises:
      ValueError: unless both are `Subspace`s with equally many rows, and their vectors
        have the same structure and shapes.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> top = lambda *diagonal: bulk_sgd.top_eigenpairs(
      ...     jax.tree_util.Partial(jnp.multiply, jnp.array(diagonal)), jnp.ones(3), 2)
      >>> found = bulk_sgd.displacement(top(3.0, 2.0, 0.0), top(2.0, 3.0, 0.0))
      >>> print(found.vectors.round(3), found.subspace.round(3))
      [1. 1.] 0.0
    """
    check_subspace("before", before)
    check_subspace("after", after)
    if after.rank != before.rank:
        problem = f"has {after.rank} rows; it must have {before.rank}, as before has."
        raise checks.ArgumentError("after", problem)
    forms = (basis.like(x.eigenvectors) for x in (after, before))
    checks.like("eigenvectors of after", *forms, "those of before")
    (first, one), (second, other) = map(_order, (before, after))
    cosines = basis.gram(before.eigenvectors, after.eigenvectors)
    smaller = jnp.minimum(before.kept, after.kept)
    # Rounding can leave a cosine an ulp above 1.
    turned = jnp.maximum(1 - jnp.abs(cosines[first, second]), 0)
    return Displacement(
        vectors=jnp.where(one[first] & other[second], turned, jnp.nan),
        subspace=jnp.maximum(1 - jnp.sum(cosines**2) / smaller, 0),  # NaN from 0 / 0
    )


def localization(subspace: Subspace):
    """Returns n Σ_j v_j⁴ / 3 of each eigenvector v, with n the number of parameters.

    The inverse participation ratio Σ_j v_j⁴ of a unit vector is about 1 / m if only m
    parameters have a part in it. Its mean over random directions is 3 / (n + 2). So the
    result is close to 1 for a vector that looks random, and n / 3 for a vector on a
    single parameter. Vectors in factors are expanded one at a time.

    Args:
      subspace: the eigenvectors, dense or in factors.

    Returns:
      `(k,)` in the order of descending eigenvalues and the dtype of the basis; NaN
      where a vector is missing.

    Raises:
      ValueError: if the argument is not a `Subspace`.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> matvec = jax.tree_util.Partial(jnp.multiply, jnp.array([5.0, 1.0, 1.0]))
      >>> pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones(3), rank=1, tol=1e-5)
      >>> print(bulk_sgd.localization(pairs).round(3))
      [1.]
    """
    check_subspace("subspace", subspace)
    rows = subspace.eigenvectors
    size = basis.size(basis.like(rows))

    def fourth_power(row):
        squares = jax.tree.map(jnp.square, row)
        return basis.dot(squares, squares)

    order, known = _order(subspace)
    found = size / 3 * basis.map_in_turn(fourth_power, rows)
    return jnp.where(known, found, jnp.nan)[order]


def _order(subspace):
    """Rows by descending eigenvalue, missing ones last, and a mask of known rows."""
    known = basis.squared_norms(subspace.eigenvectors) > 0
    return jnp.argsort(jnp.where(known, -subspace.eigenvalues, jnp.inf)), known
