r"""The part of an update along large eigenvalues, from one Krylov sequence.

Lanczos started at u builds span{u, H u, H²u, …}. In this space the projection of u
converges long before the eigenvectors do: m products give the Gauss quadrature of the
spectral measure of u (Golub and Meurant, *Matrices, Moments and Quadrature with
Applications*, 2010). The projection of u is f(H) u, where f is 1 above a threshold and
0 below. To approximate it, project u onto the Ritz vectors with Ritz values above the
threshold.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, branches
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Subspace


class KrylovState(NamedTuple):
    """State of a `krylov_filter`.

    Attributes:
      threshold: scalar, the ratio of the threshold to |λ_1| at the last full solve.
      count: int32, calls so far.
    """

    threshold: jax.Array
    count: jax.Array


def krylov_filter(
    length: int = 10, *, calibrate_every: int = 100, max_matvecs: int | None = None
) -> Solver:
    """Returns a solver that finds only the dominant part of the incoming update.

    It keeps no basis between calls. Lanczos takes `length` steps from the update u and
    keeps Ritz vectors, at most k, with Ritz values above the threshold
    (λ_k + λ_{k+1}) / 2. The other rows are zeros; `Subspace.kept` counts the nonzero
    rows. A full solve for k + 1 eigenpairs sets the threshold, at the first call and
    then once in `calibrate_every` calls. It also stores the ratio of the threshold to
    |λ_1|. Until the next full solve, the threshold of a call is this ratio times the
    |λ_1| that the call finds.

    Use it with `refresh_every=1`, because the result says nothing about later updates.
    It also says little about other vectors, such as the gradient when u is an update of
    Adam. At the same cost `power` and `streaming` are more accurate, since they keep a
    basis. But this solver follows any jump of the Hessian.

    Attributes of the result: `eigenvalues` and `residuals` include the Ritz pairs below
    the threshold. If k exceeds `length`, the entries after the first `length` are zero.
    A call with a full solve returns all k eigenpairs instead.

    Error and cost: see `docs/solvers.md`.

    Args:
      length: Lanczos steps per call, at least 2.
      calibrate_every: calls from one full solve to the next.
      max_matvecs: bound on the matvecs of a full solve, as in `top_eigenpairs`.

    Returns:
      A `Solver` with a `KrylovState`.

    Raises:
      ValueError: if an argument is out of its range. Ranges that depend on the rank are
        checked at `init`.

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
            # Without a next eigenvalue there is no threshold to exceed.
            keep = (values > state.threshold * abs(values[0])) | (rank == dimension)
            rows = basis.where_rows(keep, found.eigenvectors)
            # The number of steps is fixed: there is nothing to converge to.
            found = found._replace(eigenvectors=rows, converged=jnp.isfinite(values[0]))
            return _rows(found, rank), state.threshold

        due = state.count % calibrate_every == 0
        # A full solve that is due in one lane is used in the others as well.
        found, threshold = branches.cond(due, calibrate, expand)
        return found, KrylovState(threshold, state.count + 1)

    return Solver(init, solve, eigenpairs=False, name="krylov_filter")


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
