"""Scales (a, b) that give way where the subspace is doubtful or a step is unstable."""

from typing import Any, NamedTuple

import jax.numpy as jnp

SWEEPS = 2  # so many refreshes per vector before a subspace is used


class Guard(NamedTuple):
    """Numbers, maybe traced, from which the scales of a step follow.

    A step of rate η along an eigenvector of eigenvalue λ is stable on a quadratic while
    ηλ is below the `threshold` of the optimizer.
    """

    dominant_scale: Any  # a
    bulk_scale: Any  # b
    threshold: Any
    tol: Any  # largest residual, relative to λ_1

    def trusts(self, state):
        """Whether the subspace of a `ScaleBySubspaceState` may be used, a bool scalar.

        False where a number is NaN.
        """
        found = state.subspace
        solves = state.refreshes - state.failed_refreshes
        top = jnp.max(found.eigenvalues)
        close = jnp.all(found.residuals <= self.tol * top)
        return (solves >= SWEEPS * found.rank) & (top > 0) & close

    def scales(self, rate, eigenvalues, trusted):
        """The factors (a, b) of a step of this rate: `(k,)`, and a scalar.

        Where a vector's ηλ exceeds the threshold, its factor is 1: the optimizer's own
        step, whose instability lowers λ again. The bulk's eigenvalues are at most λ_k,
        so b is lowered, to 1 at the least, where bηλ_k exceeds the threshold.
        """
        dtype = eigenvalues.dtype
        unstable = rate * eigenvalues > self.threshold
        dominant = jnp.where(trusted & ~unstable, self.dominant_scale, 1)
        steepest = rate * jnp.min(eigenvalues)
        bound = self.threshold / jnp.where(steepest > 0, steepest, 1)
        bounded = jnp.clip(bound, min=1, max=jnp.maximum(self.bulk_scale, 1))
        stable = self.bulk_scale * steepest <= self.threshold
        bulk = jnp.where(stable | (self.bulk_scale <= 1), self.bulk_scale, bounded)
        return dominant.astype(dtype), jnp.where(trusted, bulk, 1).astype(dtype)
