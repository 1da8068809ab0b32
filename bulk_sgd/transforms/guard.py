"""The guard of `accelerated`: when a step may be scaled."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from bulk_sgd.linalg import basis, branches
from bulk_sgd.solvers.subspace import Subspace


class Guard(NamedTuple):
    """Scales and the bounds within which they act: numbers, perhaps traced.

    On a quadratic loss, a step of rate η along an eigenvector with eigenvalue λ is
    stable if ηλ is below the optimizer's `threshold`. A scale multiplies η.
    """

    dominant_scale: Any  # a
    bulk_scale: Any  # b
    threshold: Any
    tol: Any  # largest residual, relative to λ_1
    sweeps: Any  # successful products per vector before the scales act

    def scales(self, before, after, rate, sound, asked=True):
        """The factors (a, b) of a step, whether the subspace is sound, and if they act.

        `before` and `after` are the `ScaleBySubspaceState`s around its refresh. The
        subspace is sound if the last solve that took products succeeded; the argument
        `sound` says so of the step before. If the factors do not act, both are 1. They
        do not act if the state has a NaN, or if they are not `asked` to.
        """
        spent = after.total_matvecs > before.total_matvecs
        failed = after.failed_refreshes > before.failed_refreshes
        sound = jnp.where(spent | failed, ~failed, sound)
        found = after.subspace
        values, top = found.eigenvalues, jnp.max(found.eigenvalues)
        settled = after.useful_matvecs >= self.sweeps * found.rank
        close = jnp.all(found.residuals <= self.tol * top)
        stable = jnp.maximum(self.dominant_scale, 1) * rate * top <= self.threshold
        acts = sound & settled & (top > 0) & close & stable & asked
        # Only a step that is scaled pays for the pass over the basis.
        bulk = branches.cond(
            acts,
            lambda: self._bounded(rate * largest_in_bulk(found)).astype(values.dtype),
            lambda: jnp.ones((), values.dtype),
        )
        factors = self.dominant_scale, bulk
        given = tuple(jnp.where(acts, x, 1).astype(values.dtype) for x in factors)
        return given, sound, acts

    def _bounded(self, steepest):
        """The factor b, lowered if bηλ exceeds the threshold, but not below 1.

        `steepest` is ηλ, with the largest eigenvalue λ of the bulk.
        """
        bound = self.threshold / jnp.where(steepest > 0, steepest, 1)
        lowered = jnp.clip(
            bound, min=jnp.minimum(self.bulk_scale, 1), max=self.bulk_scale
        )
        return jnp.where(steepest > 0, lowered, self.bulk_scale)


def largest_in_bulk(found: Subspace):
    """An upper bound on the eigenvalues of the bulk.

    The solver takes the largest eigenvalues or the largest magnitudes, so those that it
    did not find are at most min |λ_i|. A row of zeros is in the bulk: `adaptive` keeps
    the eigenvalue of a vector that it drops, and a vector not yet found has 0.
    """
    values = found.eigenvalues
    kept = basis.squared_norms(found.eigenvectors) > 0
    known = kept | (values != 0)
    others = jnp.min(jnp.abs(values), where=known, initial=jnp.inf)
    return jnp.maximum(others, jnp.max(values, where=~kept, initial=-jnp.inf))
