"""How close the eigenvectors are to low rank, matrix by matrix of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.ranks import energies
from bulk_sgd.solvers.subspace import Subspace, check_subspace


class RankProfile(NamedTuple):
    """How much of each eigenvector remains if its matrices are cut to a low rank.

    Attributes:
      whole: `(k, n)`. Entry (i, j) is the share of the squared length of eigenvector i
        that remains if each of its matrices is cut to the j-th of n ranks. It is NaN
        for a row of zeros.
      leaves: pytree like the parameters with leaves `(k, n)`, the same share for the
        part of the eigenvector in this leaf alone; 1 for vectors and scalars.
    """

    whole: jax.Array
    leaves: Any


def rank_profile(subspace: Subspace, ranks=(1, 2, 4, 8, 16), axes=None) -> RankProfile:
    """Returns how much of each eigenvector remains if its matrices have low rank.

    In a leading eigenvector of the Hessian, the part that belongs to a weight matrix is
    itself a matrix, nearly of low rank (Wu, Zhu, Wu, Wang and Ge, *Dissecting Hessian*,
    arXiv 2010.04261). The cut is the best approximation of rank r (a truncated SVD), of
    each matrix by itself. `bulk_sgd.Subspace.factored` keeps r directions that all
    eigenvectors share, and so keeps at most as much; it returns that share. A basis in
    factors is first expanded to k dense vectors.

    Args:
      subspace: the eigenvectors, such as `bulk_sgd.top_eigenpairs` returns.
      ranks: n Python integers, at least 1.
      axes: which axes are rows and columns, as in `bulk_sgd.Subspace.factored`.

    Returns:
      The `RankProfile`, in the dtype of the eigenvectors.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([[2.0, 0], [0, 1.0]]) * w) ** 2
      >>> matvec = bulk_sgd.hessian(loss, jnp.ones((2, 2)))
      >>> pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones((2, 2)), rank=1, tol=1e-5)
      >>> print(bulk_sgd.rank_profile(pairs, (1, 2)).whole.round(3))
      [[0.8 1. ]]
    """
    check_subspace("subspace", subspace)
    ranks = checks.sequence("ranks", ranks)
    for index, rank in enumerate(ranks):
        checks.integer(f"ranks[{index}]", rank, 1)
    rows = basis.dense(subspace.eigenvectors)
    leaves, treedef = jax.tree.flatten(rows)
    within = energies(rows, ranks, axes)
    lengths = [jnp.sum(x**2, axis=range(1, x.ndim))[:, None] for x in leaves]
    return RankProfile(
        sum(within) / sum(lengths),
        treedef.unflatten(kept / length for kept, length in zip(within, lengths)),
    )
