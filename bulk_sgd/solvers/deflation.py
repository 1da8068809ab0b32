"""Lanczos that sees a repeated eigenvalue as often as it occurs.

A single Krylov sequence meets one direction of each eigenspace. Diagonal blocks of a
Hessian have larger eigenspaces: under squared error the block of a linear last layer is
a Kronecker product with the identity, which repeats each eigenvalue once per output. So
the complement of the pairs found is searched by itself, until it holds no larger
eigenvalue (Hotelling's deflation).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import thick_restart
from bulk_sgd.solvers.ritz import ORDERS
from bulk_sgd.solvers.subspace import Subspace


@functools.partial(
    jax.jit, static_argnames=("rank", "max_matvecs", "num_rows", "which")
)
def solve(matvec, start, key, tol, *, rank, max_matvecs, num_rows, which):
    """`thick_restart.solve`, and searches for what it missed.

    Each search has `max_matvecs` of its own, and every one but the last adds a pair.
    """
    key, solve_key = jax.random.split(key)
    found = thick_restart.solve(
        matvec,
        start,
        solve_key,
        tol,
        rank=rank,
        max_matvecs=max_matvecs,
        num_rows=num_rows,
        which=which,
    )
    like = basis.row(found.eigenvectors, 0)
    if rank == basis.size(like):
        return found
    order = ORDERS[which]
    limits = thick_restart.bounds(1, basis.size(like), max_matvecs, None)

    def search(found, key):
        """The first eigenpair orthogonal to those found."""
        start_key, key = jax.random.split(key)
        # Those found go to the end of the order: their zeros might come first there.
        last = {"largest": -1, "smallest": 1, "magnitude": 0}[which]
        last = last * jnp.max(jnp.abs(found.eigenvalues) + found.residuals)

        return thick_restart.solve(
            _Deflated(matvec, found, last),
            found.complement(basis.random_normal(start_key, like)),
            key,
            tol,
            rank=1,
            max_matvecs=limits[0],
            num_rows=min(limits[1], num_rows),
            which=which,
        )

    def go_on(carry):
        found, key, _ = carry
        key, search_key = jax.random.split(key)
        other = search(found, search_key)
        # Even the least residual holds the rounding of the largest eigenvalue of all,
        # to which the eigenvalues found may be small.
        slack = tol * jnp.max(jnp.abs(found.eigenvalues))
        slack += jnp.minimum(jnp.min(found.residuals), other.residuals[0])
        missed = order(other.eigenvalues[0]) > order(found.eigenvalues[-1]) + slack
        together = basis.where(missed, _inserted(other, found, order), found)
        together = together._replace(
            converged=found.converged & other.converged,
            num_matvecs=found.num_matvecs + other.num_matvecs,
        )
        return together, key, missed

    # No search follows a solve that failed.
    return jax.lax.while_loop(
        lambda carry: carry[2], go_on, (found, key, found.converged)
    )[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Deflated:
    """`matvec` with the eigenvalues of `found` replaced by `last`."""

    matvec: Any
    found: Subspace
    last: jax.Array

    def __call__(self, vector):
        return self.linearize()(vector)

    def linearize(self):
        """As that of `matvec`."""
        apply = operators.linearize(self.matvec)

        def product(vector):
            inside = self.found.project(vector)
            image = self.found.complement(apply(basis.subtract(vector, inside)))
            return jax.tree.map(lambda x, y: x + self.last * y, image, inside)

        return product


def _inserted(other: Subspace, found: Subspace, order) -> Subspace:
    """`found` with the pair of `other` in place of its last one, in order."""
    values = found.eigenvalues.at[-1].set(other.eigenvalues[0])
    place = jnp.argsort(order(values), descending=True)
    merge = lambda x, y: x.at[-1].set(y[0])[place]
    fresh = basis.unit(found.complement(basis.row(other.eigenvectors, 0)))
    rows = basis.set_row(found.eigenvectors, -1, fresh)
    return found._replace(
        eigenvalues=values[place],
        eigenvectors=jax.tree.map(lambda x: x[place], rows),
        residuals=merge(found.residuals, other.residuals),
    )
