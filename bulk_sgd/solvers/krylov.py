r"""The part of an update along large eigenvalues, by one Krylov sequence from it.

Lanczos started at u builds span{u, H u, H²u, …}, in which the projection of u itself
converges long before the eigenvectors do: what m products say about a vector is
Gauss quadrature of its spectral measure (Golub and Meurant, *Matrices, Moments and
Quadrature with Applications*, 2010). A step function of H, 1 above a threshold τ and 0
below, is then applied to u by keeping the Ritz vectors whose Ritz values exceed τ.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.branches import any_lane
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.solvers.subspace import Solver, Subspace


class KrylovState(NamedTuple):
    """State of a `krylov_filter`.

    Attributes:
      threshold: scalar, (λ_k + λ_{k+1}) / 2 over λ_1, of the last full solve.
      count: int32, calls so far.
    """

    threshold: jax.Array
    count: jax.Array


def krylov_filter(
    length: int = 10,
    *,
    calibrate_every: int = 100,
    max_matvecs: int | None = None,
) -> Solver:
    """Solver that serves the incoming update alone, and keeps no basis.

    Lanczos takes `length` steps from the update u, and of its Ritz vectors those
    are kept, k at most, whose Ritz values are above the threshold (λ_k + λ_{k+1}) / 2.
    The others are rows of zeros, and `Subspace.kept` counts the rest. The threshold
    comes from a full solve for k + 1 eigenpairs, at the first call and at one in
    `calibrate_every`, and is carried over as a fraction of λ_1, which moves most.

    The result projects u; of another vector, such as the gradient where u is an update
    of Adam, it knows little. A basis that is kept gives more for the same price,
    `power` and `streaming`; this needs none, and follows any jump of the Hessian. Use
    it with `refresh_every=1`: on the updates in between it knows nothing.

    Attributes of the result: `eigenvalues` are Ritz values, those of left out vectors
    too, and zeros where `length` is below k; `residuals` accordingly.

    Error and cost along training: `docs/solvers.md`.

    Args:
      length: of the Krylov sequence, the steps of Lanczos per call, at least 2.
      calibrate_every: calls from one full solve to the next.
      max_matvecs: bound on the matvecs of a full solve, as in `top_eigenpairs`.

    Returns:
      A `Solver` with a `KrylovState`.

    Raises:
      ValueError: if an argument is out of its range, at `init` if it is for the rank.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.krylov_filter(20))
    """
    checks.integer("length", length, 2)
    checks.integer("calibrate_every", calibrate_every, 1)
    if max_matvecs is not None:
        checks.integer("max_matvecs", max_matvecs, 1)

    def init(params, rank):
        if max_matvecs is not None:
            why = "the rank and the next eigenvalue"
            checks.integer("max_matvecs", max_matvecs, rank + 1, why=why)
        dtype = basis.working_dtype(params)
        return KrylovState(jnp.zeros((), dtype), jnp.zeros((), jnp.int32))

    def solve(matvec, subspace, state, updates, key):
        rank, dimension = subspace.rank, basis.size(updates)

        def calibrate():
            # From a random vector: the update may be orthogonal to an eigenvector.
            start_key, solve_key = jax.random.split(key)
            start = basis.random_normal(start_key, updates)
            more = min(rank + 1, dimension)
            found = top_eigenpairs(
                matvec, start, more, max_matvecs=max_matvecs, key=solve_key
            )
            values = found.eigenvalues
            edge = values[-2:].mean() / jnp.where(values[0] == 0, 1, abs(values[0]))
            return _rows(found, rank), edge.astype(state.threshold.dtype)

        def expand():
            steps = min(length, dimension)
            found = top_eigenpairs(
                matvec, updates, min(rank, steps), 0.0, steps, max_basis=steps, key=key
            )
            values = found.eigenvalues
            # Where there is no next eigenvalue, everything is kept.
            keep = (values > state.threshold * abs(values[0])) | (rank == dimension)
            rows = jax.tree.map(
                lambda x: jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, 0),
                found.eigenvectors,
            )
            # So many steps and no more: nothing to converge to.
            found = found._replace(eigenvectors=rows, converged=jnp.isfinite(values[0]))
            return _rows(found, rank), state.threshold

        due = state.count % calibrate_every == 0
        # A full solve that is due in one lane serves the others as well.
        found, threshold = jax.lax.cond(any_lane(due), calibrate, expand)
        return found, KrylovState(threshold, state.count + 1)

    return Solver(init, solve, eigenpairs=False)


def _rows(found: Subspace, rank: int) -> Subspace:
    """The first `rank` pairs, or zeros for those that are missing."""
    missing = rank - min(found.rank, rank)

    def fit(x):
        return jnp.pad(x[:rank], [(0, missing)] + [(0, 0)] * (x.ndim - 1))

    return found._replace(
        eigenvalues=fit(found.eigenvalues),
        eigenvectors=jax.tree.map(fit, found.eigenvectors),
        residuals=fit(found.residuals),
    )
