"""What remains of dense rows after their matrices lose all but a few directions."""

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.factors import directions
from bulk_sgd.linalg.matrices import sides

ADAPTIVE = "adaptive"


def check_factors(factors):
    """Raises ArgumentError unless the `factors` of a solver are an integer above 0."""
    if factors == ADAPTIVE:
        raise checks.ArgumentError(
            "factors",
            "is 'adaptive'; it must be an integer, because a solver has arrays of "
            "fixed shapes. Subspace.factored('adaptive') finds one.",
        )
    checks.integer("factors", factors, 1, why="None keeps whole vectors")


def energies(rows, ranks, axes=None) -> list:
    """The squared length of k rows that the best cut to each of n ranks keeps.

    Each matrix of each row is cut by itself. There is one array `(k, n)` per leaf. A
    leaf that is not a matrix keeps its whole length. `matrices.sides` explains `axes`.
    """

    def kept(leaf, side):
        values = jnp.linalg.svd(side.matrices(leaf), compute_uv=False) ** 2
        found = [jnp.sum(values[..., :rank], axis=(1, 2)) for rank in ranks]
        return jnp.stack(found, axis=1)

    return _by_leaf(kept, rows, ranks, axes)


def shared_energies(rows, counts, axes=None) -> list:
    """As `energies`, but each row keeps what lies along shared directions.

    These are the best of each number in `counts`; the number None keeps all.
    """

    def kept(leaf, side):
        squares = directions(leaf, side)[1]
        found = [jnp.sum(squares[:, :count], axis=(0, 1)) for count in counts]
        return jnp.stack(found, axis=1)

    return _by_leaf(kept, rows, counts, axes)


def _by_leaf(kept, rows, ranks, axes):
    def of(leaf, side):
        if side is not None:
            return kept(leaf, side)
        whole = jnp.sum(leaf**2, axis=range(1, leaf.ndim))
        return jnp.tile(whole[:, None], len(ranks))

    return list(map(of, jax.tree.leaves(rows), sides(basis.like(rows), 0, axes)))


def smallest(rows, lost: float, most: int, axes=None) -> int:
    """The smallest `factors` at which a cut takes little of each row, or else `most`.

    Little means: at most the share `lost` of the squared length, rounding aside. A
    matrix stays dense if factors would save nothing; it then loses nothing.

    Raises ArgumentError if the rows are traced: the result is a Python integer.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(rows)):
        raise checks.ArgumentError(
            "factors",
            "is 'adaptive'; inside jit, vmap and scan, where shapes are fixed, it must "
            "be an integer.",
        )
    rows = basis.widen(rows)
    ranks = range(1, most + 1)
    within = [np.asarray(x, float) for x in shared_energies(rows, (*ranks, None), axes)]
    # Energies are sums of squared singular values, exact to some roundings.
    rounding = 10 * jnp.finfo(basis.working_dtype(rows)).eps
    most_lost = (lost + rounding) * sum(within)[:, -1]
    for index, rank in enumerate(ranks):
        found = sides(basis.like(rows), rank, axes)
        parts = zip(within, found)
        gone = sum(x[:, -1] - x[:, index] for x, side in parts if side is not None)
        if np.all(gone <= most_lost):
            return rank
    return most
