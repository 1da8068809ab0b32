"""A rank that follows the spectrum, below the static one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.solvers.subspace import Rows, Solver, Subspace, check_solver, empty


class AdaptiveState(NamedTuple):
    """State of an `adaptive` solver.

    Attributes:
      inner: state of the wrapped solver.
      all_rows: basis of all k vectors, from which that one goes on.
      all_values: the other fields of their `Subspace`, without names, lest those of the
        transform's own be found twice by `optax.tree_utils.tree_get`.
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
    """Solver that keeps the vectors of another one whose eigenvalues stand out.

    The others become rows of zeros, which projections ignore, so that the rank of the
    transform is the largest one. Their eigenvalues and residuals stay, and the wrapped
    solver still sees the whole basis of its last call. What is kept may be empty.

    The largest gap is that of log λ, over which the ratio λ_i / λ_{i+1} is largest:
    between the outliers of a Hessian and the rest, where λ_1 − λ_2 often is the
    largest difference. Eigenvalues that are not positive are never kept by it.

    Error: that of `solver`, but where an eigenvalue crosses the threshold its vector
    comes or goes whole. Cost: that of `solver`; memory for one more basis.

    Args:
      solver: what is called, such as `bulk_sgd.lanczos()`.
      threshold: keep where `learning_rate` · λ is above it; None for all up to the
        largest gap, k − 1 vectors at most, or all k if they are equal.
      learning_rate: η, where the threshold is meant in units of 1/η: an edge of
        stability is at 2. May be traced.

    Returns:
      A `Solver` with an `AdaptiveState`.

    Raises:
      ValueError: if an argument is out of its range, at `init` if the rank is 1, where
        there is no gap.

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
        return _state(state, empty(params, rank), jnp.zeros((), jnp.int32))

    def solve(matvec, subspace, state, updates, key):
        del subspace  # has rows of zeros
        found, inner = solver.solve(matvec, state.whole, state.inner, updates, key)
        values = found.eigenvalues
        if threshold is None:
            keep = before_gap(values)
        else:
            keep = learning_rate * values > threshold
        rows = jax.tree.map(
            lambda x: jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, 0),
            found.eigenvectors,
        )
        kept = jnp.sum(keep, dtype=jnp.int32)
        return found._replace(eigenvectors=rows), _state(inner, found, kept)

    return Solver(init, solve, guarded=solver.guarded)


def _state(inner, found: Subspace, kept) -> AdaptiveState:
    values, rows, *others = found
    return AdaptiveState(inner, Rows(rows), (values, *others), kept)


def before_gap(values):
    """Which of the eigenvalues are above the largest ratio of two successive ones.

    Args:
      values: `(k,)`, at least two.

    Returns:
      `(k,)` bools; eigenvalues that are not positive are never above it.
    """
    descending = jnp.sort(values, descending=True)
    # Zeros and rounding end the spectrum: what follows has no ratio.
    floor = jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    positive = jnp.maximum(descending, floor)
    last = jnp.argmax(positive[:-1] / positive[1:])
    return (values >= descending[last]) & (values > floor)
