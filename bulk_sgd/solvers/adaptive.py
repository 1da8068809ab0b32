"""A solver that keeps only vectors with outstanding eigenvalues: an adaptive rank."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, units
from bulk_sgd.solvers.solver import Solver, check_solver
from bulk_sgd.solvers.subspace import Rows, Subspace, empty


class AdaptiveState(NamedTuple):
    """State of an `adaptive` solver.

    Attributes:
      inner: state of the wrapped solver.
      all_rows: all k vectors, from which the wrapped solver starts next time.
      all_values: `eigenvalues`, `residuals`, `converged` and `num_matvecs` of the
        wrapped solver's last `Subspace`. They are in a plain tuple, so that
        `optax.tree_utils.tree_get` finds only one field of each name.
      kept: int32, number of vectors kept at the last solve.
    """

    inner: Any
    all_rows: Rows
    all_values: tuple
    kept: jax.Array

    @property
    def whole(self) -> Subspace:
        """The `Subspace` of all k vectors."""
        values, *others = self.all_values
        return Subspace(values, self.all_rows.rows, *others)


def adaptive(
    solver: Solver, threshold: float | None = None, *, learning_rate: float = 1.0
) -> Solver:
    """Returns a solver that calls another one and drops vectors of small eigenvalues.

    Dropped vectors become rows of zeros, which projections ignore, so the rank of the
    transform is an upper bound. All eigenvalues and residuals stay, and the wrapped
    solver always starts from all of its k vectors. The subspace can be empty.

    Without a threshold the cut is where the ratio λ_i / λ_{i+1} is largest, that is, at
    the largest gap of log λ. This gap separates the few large eigenvalues of a Hessian
    from the rest. The largest difference does not: it is often λ_1 − λ_2. Vectors with
    λ ≤ 0 are always dropped.

    Error: as for `solver`, except that a vector enters or leaves abruptly when its
    eigenvalue crosses the cut. Cost: as for `solver`, and memory for one more basis.

    Args:
      solver: the solver to call, such as `bulk_sgd.lanczos()`.
      threshold: keep a vector if `learning_rate` · λ exceeds the threshold, which is at
        least 0. With None the cut is at the largest gap: it keeps at most k − 1
        vectors, or all k if all λ are equal.
      learning_rate: the rate η, possibly traced. With it, a threshold of 2 is the edge
        of stability. η must be 1 if `threshold` is None.

    Returns:
      A `Solver` with an `AdaptiveState`.

    Raises:
      ValueError: if an argument is out of its range. At `init`, if the rank is 1 and
        `threshold` is None: one eigenvalue has no gap.

    Example:
      >>> import bulk_sgd
      >>> solver = bulk_sgd.adaptive(bulk_sgd.lanczos(), 0.5, learning_rate=0.01)
      >>> tx = bulk_sgd.project_bulk(rank=20, solver=solver)
    """
    check_solver(solver, eigenpairs=True)
    if threshold is not None:
        checks.at_least("threshold", threshold, 0)
    elif not isinstance(learning_rate, (int, float)) or learning_rate != 1:
        raise checks.ArgumentError(
            "learning_rate",
            f"is {learning_rate!r}; it must be 1 where threshold is None, for the "
            "largest gap has no unit.",
        )
    checks.at_least("learning_rate", learning_rate, 0)

    def init(params, rank):
        if threshold is None:
            checks.integer("rank", rank, 2, why="threshold is None: the largest gap")
        state = solver.init(params, rank)
        whole = empty(params, rank, solver.zeros)
        return _state(state, whole, jnp.zeros((), jnp.int32))

    def solve(matvec, subspace, state, updates, key):
        del subspace  # has rows of zeros
        found, inner = solver.solve(matvec, state.whole, state.inner, updates, key)
        values = found.eigenvalues
        if threshold is None:
            keep = before_gap(values)
        else:
            keep = learning_rate * values > threshold
        rows = basis.where_rows(keep, found.eigenvectors)
        kept = jnp.sum(keep, dtype=jnp.int32)
        return found._replace(eigenvectors=rows), _state(inner, found, kept)

    return solver._replace(init=init, solve=solve, name="adaptive")


def _state(inner, found: Subspace, kept) -> AdaptiveState:
    values, rows, *others = found
    return AdaptiveState(inner, Rows(rows), (values, *others), kept)


def before_gap(values):
    """`(k,)` bools: which positive eigenvalues come before the largest gap of log λ."""
    size = jnp.max(jnp.abs(values))
    unit = units.power_of_two(size)
    values, size = values / unit, size / unit
    descending = jnp.sort(values, descending=True)
    # Zeros and rounding end the spectrum: ratios below them mean nothing.
    floor = jnp.finfo(values.dtype).eps * size
    positive = jnp.maximum(descending, floor)
    last = jnp.argmax(positive[:-1] / positive[1:])
    return (values >= descending[last]) & (values > floor)
