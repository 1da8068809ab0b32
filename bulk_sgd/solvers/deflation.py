"""Lanczos that sees a repeated eigenvalue as often as it occurs.

A single Krylov sequence meets one direction of each eigenspace. Blocks of a Hessian
have larger eigenspaces: under squared error the block of a linear last layer is a
Kronecker product with the identity, so each eigenvalue occurs once per output. After a
first solve the orthogonal complement of the pairs found is searched, again and again,
until it holds no larger eigenvalue (Hotelling's deflation).
"""

import functools

import jax
import jax.numpy as jnp

from bulk_sgd.curvature.operators import Wrapped
from bulk_sgd.linalg import basis, units
from bulk_sgd.solvers import thick_restart
from bulk_sgd.solvers.ritz import ORDERS
from bulk_sgd.solvers.subspace import Subspace


@functools.partial(
    jax.jit, static_argnames=("rank", "max_matvecs", "num_rows", "which")
)
def solve(matvec, start, key, tol, *, rank, max_matvecs, num_rows, which):
    """`thick_restart.solve`, followed by searches for the pairs that it missed.

    Each search may take `max_matvecs`, and each but the last adds a pair.
    """
    key, solve_key = jax.random.split(key)
    found, magnitude = thick_restart.solve(
        matvec,
        start,
        solve_key,
        tol / 2,
        rank=rank,
        max_matvecs=max_matvecs,
        num_rows=num_rows,
        which=which,
    )
    like = basis.row(found.eigenvectors, 0)
    if rank == basis.size(like):
        return found, magnitude
    order = ORDERS[which]
    limits = thick_restart.bounds(1, basis.size(like), max_matvecs, None)

    def search(found, key):
        """The first eigenpair orthogonal to those found."""
        start_key, key = jax.random.split(key)
        # The pairs found move to the end of the order; as zeros they could come first.
        last = {"largest": -1, "smallest": 1, "magnitude": 0}[which]
        last = last * jnp.max(jnp.abs(found.eigenvalues) + found.residuals)

        return thick_restart.solve(
            Wrapped(_deflated, matvec, arrays=(found, last)),
            found.complement(basis.random_normal(start_key, like)),
            key,
            tol / 2,
            magnitude,  # a remainder of rounding alone has no scale of its own
            rank=1,
            max_matvecs=limits[0],
            num_rows=min(limits[1], num_rows),
            which=which,
        )

    def go_on(carry):
        found, key, _ = carry
        key, search_key = jax.random.split(key)
        other, _ = search(found, search_key)
        # The eigenvalues found can all be rounding. Residuals are at least the rounding
        # of the largest eigenvalue of all.
        slack = tol * jnp.max(jnp.abs(found.eigenvalues))
        slack += jnp.minimum(jnp.min(found.residuals), other.residuals[0])
        missed = order(other.eigenvalues[0]) > order(found.eigenvalues[-1]) + slack
        together = basis.where(missed, _inserted(matvec, other, found, order), found)
        small = jnp.all(together.residuals <= tol * magnitude)
        together = together._replace(
            converged=found.converged & other.converged & small,
            num_matvecs=found.num_matvecs + other.num_matvecs + missed,
        )
        return together, key, missed

    # No search if the first solve failed.
    found, *_ = jax.lax.while_loop(
        lambda carry: carry[2], go_on, (found, key, found.converged)
    )
    return found, magnitude


def _deflated(matvec, vector, found, last):
    """A product with `matvec`, its eigenvalues in `found` replaced by `last`."""
    inside = found.project(vector)
    image = found.complement(matvec(basis.subtract(vector, inside)))
    return jax.tree.map(lambda x, y: x + last * y, image, inside)


def _inserted(matvec, other: Subspace, found: Subspace, order) -> Subspace:
    """`found` with its last pair replaced by the pair of `other`, in order.

    Takes one matvec: the search did not see what A u has along the pairs found, which
    is as large as their residuals. So both go to half the tolerance.
    """
    values = found.eigenvalues.at[-1].set(other.eigenvalues[0])
    place = jnp.argsort(order(values), descending=True)
    merge = lambda x, y: x.at[-1].set(y[0])[place]
    fresh = basis.unit(found.complement(basis.row(other.eigenvectors, 0)))
    rows = basis.set_row(found.eigenvectors, -1, fresh)
    along = units.length(found.coefficients(matvec(fresh)))
    return found._replace(
        eigenvalues=values[place],
        eigenvectors=jax.tree.map(lambda x: x[place], rows),
        residuals=merge(found.residuals, jnp.hypot(other.residuals, along)),
    )
