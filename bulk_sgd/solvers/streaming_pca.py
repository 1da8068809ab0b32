"""Principal components of all past updates, weighted by age, without Hessian products.

The second moment C of the updates u is averaged as C ← (1 − ρ) C + ρ u uᵀ. For
gradients it is close to the Fisher matrix of mini-batches. Only the k leading
eigenpairs of C are kept, and each update changes them (Brand, *Incremental singular
value decomposition of uncertain data with missing values*, 2002). This method is Oja's
rule with an exact step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, units
from bulk_sgd.linalg.branches import any_lane
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Rows
from bulk_sgd.solvers.update_pca import hessian_free, rounding

_TURNS = 50  # updates between two orthonormalisations, which cost as much as one


class StreamingPCAState(NamedTuple):
    """State of `streaming_pca`.

    Attributes:
      previous: `Rows`, the last update, which is not yet in the average.
      count: int32, calls so far.
    """

    previous: Rows
    count: jax.Array


def streaming_pca(gain: float = 0.01) -> Solver:
    """Returns a solver that averages the second moment of the updates, without matvecs.

    The basis holds the k leading eigenvectors of C, the average of u uᵀ over the past
    updates u. An update enters C at the call after its own: C ← (1 − ρ) C + ρ u uᵀ. So,
    as in `update_pca`, the basis does not depend on the incoming update. The state
    therefore holds the last update. The average is recursive, so no window is kept. The
    weight ρ is 1/n at the n-th update, but never below `gain`. Use it with
    `refresh_every=1`.

    Attributes of the result: `eigenvalues` are root mean squares of the updates along
    each vector. `residuals` are zero and say nothing.

    Cost: no matvec, and two passes over the basis. Error: see `docs/solvers.md`.

    Args:
      gain: final weight ρ of a new update, from 10⁻⁶ to 1.

    Returns:
      A `Solver` with a `StreamingPCAState`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.streaming_pca())
    """
    checks.between("gain", gain, 1e-6, 1)

    def init(params, rank):
        del rank
        return StreamingPCAState(
            previous=Rows(basis.zeros(params, 1)), count=jnp.zeros((), jnp.int32)
        )

    def solve(matvec, subspace, state, updates, key):
        del matvec, key
        rows, last = subspace.eigenvectors, basis.row(state.previous.rows, 0)
        # The first call has no update to average yet.
        weight = jnp.maximum(gain, 1 / jnp.maximum(state.count, 1))
        weight = weight.astype(subspace.eigenvalues.dtype)
        inside = basis.inner(rows, last)
        outside = basis.subtract(last, basis.combine(inside, rows))
        again = basis.inner(rows, outside)  # twice is enough
        outside = basis.subtract(outside, basis.combine(again, rows))
        length = basis.norm(outside)
        along = jnp.append(inside + again, length)
        unit = units.power_of_two(units.largest((subspace.eigenvalues, along)))
        along, spread = along / unit, subspace.eigenvalues / unit
        # C in the basis of V and the part of the update outside of it.
        moment = jnp.diag(jnp.append((1 - weight) * spread**2, 0))
        values, turn = jnp.linalg.eigh(moment + weight * jnp.outer(along, along))
        values, turn = values[:0:-1], turn[:, :0:-1].T
        keep = values > rounding(values)
        turn = jnp.where(keep[:, None], turn, 0)
        added = turn[:, -1] / jnp.where(length > 0, length, 1)
        vectors = basis.combine(turn[:, :-1], rows)
        vectors = basis.add_outer(vectors, added, outside)
        # Each update loses a rounding of orthogonality.
        vectors = jax.lax.cond(
            any_lane(state.count % _TURNS == 0), orthonormal, lambda x: x, vectors
        )
        update = basis.widen(updates)
        found = hessian_free(
            subspace,
            unit * jnp.sqrt(jnp.where(keep, values, 0)),
            vectors,
            jnp.isfinite(basis.norm(update)),
        )
        previous = Rows(jax.tree.map(lambda x: x[None], update))
        return found, StreamingPCAState(previous, state.count + 1)

    return Solver(init, solve, eigenpairs=False, name="streaming_pca")
