"""Principal components of the last updates, without Hessian products.

Updates lie mostly in the dominant subspace, so their principal components estimate it
without a matvec (Zhou et al., *BSFA: Leveraging the Subspace Dichotomy to Accelerate
Neural Network Training*, arXiv 2510.25244). The components are the directions of large
updates, sharp or not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, branches
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.linalg.units import power_of_two
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Rows, Subspace


class UpdatePCAState(NamedTuple):
    """State of `update_pca`.

    Attributes:
      window: `Rows`, the last m updates, each divided by its entry of `units`.
      units: `(m,)`, for each update a power of two near its length.
      products: `(m, m)`, the inner products of the rows of the window.
      count: int32, finite updates so far.
    """

    window: Rows
    units: jax.Array
    products: jax.Array
    count: jax.Array


def update_pca(window: int = 50, *, every: int = 1) -> Solver:
    """Returns a solver that takes the principal components of the last updates.

    The basis does not depend on the incoming update. Otherwise the update would help to
    span the subspace onto which it is projected. While there are fewer than k updates,
    the missing rows are zeros. Use it with `refresh_every=1`.

    Attributes of the result: `eigenvalues` are root mean squares of the components of
    the last m updates along each vector. They are not eigenvalues of a Hessian: do not
    use them in a spectral filter. `residuals` are zero and say nothing.

    Error: several times the error of `streaming`, which costs one matvec; see
    `docs/solvers.md`. Cost: no matvec, and memory for the window.

    Args:
      window: number m of updates remembered, at least the rank.
      every: find the components at one call in `every`; the window takes every update.

    Returns:
      A `Solver` with an `UpdatePCAState`.

    Raises:
      ValueError: if an argument is out of its range. At `init`, if the window is
        smaller than the rank.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.update_pca(window=100))
    """
    checks.integer("window", window, 1)
    checks.integer("every", every, 1)

    def init(params, rank):
        checks.integer("window", window, rank, why="the rank")
        dtype = basis.working_dtype(params)
        return UpdatePCAState(
            window=Rows(basis.zeros(params, window, dtype)),
            units=jnp.zeros(window, dtype),
            products=jnp.zeros((window, window), dtype),
            count=jnp.zeros((), jnp.int32),
        )

    def solve(matvec, subspace, state, updates, key):
        del matvec, key
        (rows,), units, products, count = state
        length = basis.norm(updates)
        finite = jnp.isfinite(length)
        due = finite & (count % every == 0)

        def components():
            unit = power_of_two(jnp.max(units))
            sizes = units / unit
            values, vectors = jnp.linalg.eigh(jnp.outer(sizes, sizes) * products)
            values = values[::-1][: subspace.rank]
            vectors = vectors[:, ::-1].T[: subspace.rank]
            keep = values > rounding(values)
            inverse = jnp.where(keep, jax.lax.rsqrt(jnp.where(keep, values, 1)), 0)
            weights = vectors * jnp.outer(inverse, sizes)
            found = basis.combine(weights, rows)
            # Inner products square the ratio of the components, so that in float32 the
            # last ones come out far from orthogonal.
            vectors = basis.put(previous[1], 0, orthonormal(found), due)
            means = jnp.where(keep, values, 0) / jnp.clip(count, 1, window)
            return jnp.where(due, unit * jnp.sqrt(means), previous[0]), vectors

        previous = subspace.eigenvalues, subspace.eigenvectors
        values, vectors = branches.cond(due, components, lambda: previous)
        slot = count % window
        unit = power_of_two(length)
        update = basis.scale(1 / unit, basis.widen(updates))
        # Kept as 0 for an update of zeros, so that it is larger than no other.
        unit = jnp.where(length == 0, 0, unit)
        written = jax.tree.map(lambda x: x[None], update)
        rows = basis.put(rows, slot, written, finite)
        column = basis.inner(rows, update)
        products = products.at[slot].set(column).at[:, slot].set(column)
        products = jnp.where(finite, products, state.products)
        units = jnp.where(finite, units.at[slot].set(unit), units)
        found = hessian_free(subspace, values, vectors, finite)
        return found, UpdatePCAState(Rows(rows), units, products, count + finite)

    return Solver(init, solve, guarded=True, eigenpairs=False, name="update_pca")


def rounding(values):
    """The mean square below which a component is rounding; mean squares descend."""
    return 100 * jnp.finfo(values.dtype).eps * values[0]


def hessian_free(subspace: Subspace, values, vectors, finite) -> Subspace:
    """The `Subspace` of a solver that took no matvec."""
    return subspace._replace(
        eigenvalues=values,
        eigenvectors=vectors,
        residuals=jnp.zeros_like(values),
        converged=finite,
        num_matvecs=jnp.zeros((), jnp.int32),
    )
