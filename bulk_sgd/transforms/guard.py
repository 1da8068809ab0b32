"""When scales (a, b) act: in a subspace that is trusted, on a step that is stable."""

from typing import Any, NamedTuple

import jax.numpy as jnp

SWEEPS = 2  # so many refreshes per vector before a subspace is used


class Guard(NamedTuple):
    """Scales, and the bounds within which they act; numbers, maybe traced.

    A step of rate η along an eigenvector of eigenvalue λ is stable on a quadratic while
    ηλ is below the `threshold` of the optimizer.
    """

    dominant_scale: Any  # a
    bulk_scale: Any  # b
    threshold: Any
    tol: Any  # largest residual, relative to λ_1

    def scales(self, state, rate, sound=True):
        """The factors (a, b) in a `ScaleBySubspaceState`, and whether they are not 1.

        A NaN counts as doubt. `sound` is False where more is known against the subspace
        than the state says.
        """
        found = state.subspace
        values, top = found.eigenvalues, jnp.max(found.eigenvalues)
        settled = state.refreshes - state.failed_refreshes >= SWEEPS * found.rank
        close = jnp.all(found.residuals <= self.tol * top)
        stable = rate * top <= self.threshold
        acts = sound & settled & (top > 0) & close & stable
        factors = self.dominant_scale, self._bounded(rate * jnp.min(values))
        return tuple(jnp.where(acts, x, 1).astype(values.dtype) for x in factors), acts

    def _bounded(self, steepest):
        """The factor b, lowered where bηλ_k exceeds the threshold, to 1 at the least.

        The eigenvalues of the bulk are at most λ_k.
        """
        bound = self.threshold / jnp.where(steepest > 0, steepest, 1)
        lowered = jnp.clip(
            bound, min=jnp.minimum(self.bulk_scale, 1), max=self.bulk_scale
        )
        return jnp.where(steepest > 0, lowered, self.bulk_scale)
