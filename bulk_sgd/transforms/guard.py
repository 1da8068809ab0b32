"""The guard of `accelerated`: when a step may be scaled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, branches
from bulk_sgd.solvers.subspace import Subspace

# The running average of the gradient's norm reaches back some 20 steps.
_DECAY = 0.95


class Memory(NamedTuple):
    """What the guard remembers from step to step.

    Attributes:
      sound: bool, whether the last solve that used matvecs succeeded.
      gradient_norm: float, running average of the gradient's norm.
      surged: bool, whether the last gradient was much larger than the average.
      needed: int32, how many matvecs must have succeeded before a step is scaled.
    """

    sound: jax.Array
    gradient_norm: jax.Array
    surged: jax.Array
    needed: jax.Array

    @classmethod
    def blank(cls) -> "Memory":
        """The memory before the first step."""
        return cls(
            sound=jnp.ones((), bool),
            gradient_norm=jnp.zeros((), jnp.float32),
            surged=jnp.zeros((), bool),
            needed=jnp.zeros((), jnp.int32),
        )


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
    surge: Any  # largest norm of the gradient, relative to its running average

    def scales(self, before, after, rate, gradient, memory, asked=True):
        """The factors (a, b) of a step, the memory after it, and if they act.

        `before` and `after` are the `ScaleBySubspaceState`s around its refresh, and
        `memory` comes from the step before. If the factors do not act, both are 1. They
        do not act if the state has a NaN, or if they are not `asked` to.
        """
        memory = self._remember(before, after, gradient, memory)
        found = after.subspace
        values, top = found.eigenvalues, jnp.max(found.eigenvalues)
        settled = after.useful_matvecs >= memory.needed
        close = jnp.all(found.residuals <= self.tol * top)
        stable = jnp.maximum(self.dominant_scale, 1) * rate * top <= self.threshold
        usable = memory.sound & settled & (top > 0) & close & stable
        acts = usable & ~memory.surged & asked
        # Only a step that is scaled pays for the pass over the basis.
        bulk = branches.cond(
            acts,
            lambda: self._bounded(rate * largest_in_bulk(found)).astype(values.dtype),
            lambda: jnp.ones((), values.dtype),
        )
        factors = self.dominant_scale, bulk
        given = tuple(jnp.where(acts, x, 1).astype(values.dtype) for x in factors)
        return given, memory, acts

    def _remember(self, before, after, gradient, memory):
        """The memory after a refresh and a gradient.

        After two surges in a row, the subspace must be renewed: one more product per
        vector. A single surge may be the noise of a mini-batch.
        """
        spent = after.total_matvecs > before.total_matvecs
        failed = after.failed_refreshes > before.failed_refreshes
        norm, known = basis.norm(gradient).astype(jnp.float32), memory.gradient_norm
        known = jnp.where(known > 0, known, norm)
        highest = (self.surge * known).astype(jnp.float32)
        calm = jnp.isfinite(norm) & (norm <= highest)
        rank = after.subspace.rank
        twice = memory.surged & ~calm
        again = jnp.where(twice, after.useful_matvecs + rank, self.sweeps * rank)
        average = _DECAY * known + (1 - _DECAY) * jnp.where(calm, norm, highest)
        # Gradients of zero would let every later one surge.
        average = jnp.where(norm > 0, average, known)
        return Memory(
            sound=jnp.where(spent | failed, ~failed, memory.sound),
            gradient_norm=jnp.where(jnp.isfinite(average), average, 0),
            surged=~calm,
            needed=jnp.maximum(memory.needed, again).astype(jnp.int32),
        )

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
