"""What goes into the training program and what comes out of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab.data.reader import Batches
from bulk_sgd.transforms.scale_by_subspace import ScaleBySubspaceState


class Scalars(NamedTuple):
    """The numbers in which runs of one program may differ.

    Attributes:
      learning_rate: η, or what its schedule multiplies.
      dominant_scale: a.
      bulk_scale: b.
      refresh_every: steps between refreshes.
      threshold: training stops after the step whose average alignment exceeds it.
      seed: seed of the solver's random directions.
    """

    learning_rate: Any
    dominant_scale: Any = 1.0
    bulk_scale: Any = 1.0
    refresh_every: Any = 1
    threshold: Any = jnp.inf
    seed: Any = 0


class TrainState(NamedTuple):
    """What one run carries from step to step.

    Attributes:
      step: int32, steps taken since the start of the prefix.
      params: pytree of the parameters.
      inner: state of the inner optimizer.
      projection: `ScaleBySubspaceState`.
      loss: scalar, the batch loss of the last step.
    """

    step: jax.Array
    params: Any
    inner: Any
    projection: ScaleBySubspaceState
    loss: jax.Array


class Trace(NamedTuple):
    """What happened in one dispatch.

    Attributes:
      num_steps: int32, steps taken.
      batch_losses: `(n,)`, zero beyond `num_steps`.
      alignments: `(n,)`, χ_k of the incoming updates, likewise.
      descent_ratios: `(n,)`, ⟨g, v⟩ / ⟨g, u⟩ with g the batch gradient, u the incoming
        and v the scaled update: to first order, the share of the decrease of the batch
        loss that the scales leave.
    """

    num_steps: jax.Array
    batch_losses: jax.Array
    alignments: jax.Array
    descent_ratios: jax.Array

    @classmethod
    def blank(cls, feed) -> "Trace":
        """The trace before the first step of a dispatch with this feed."""
        zeros = jnp.zeros(len(jax.tree.leaves(feed)[0]))
        return cls(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

    def add(self, loss, alignment, descent_ratio) -> "Trace":
        """The trace after one more step."""
        now = self.num_steps
        return Trace(
            num_steps=now + 1,
            batch_losses=self.batch_losses.at[now].set(loss),
            alignments=self.alignments.at[now].set(alignment),
            descent_ratios=self.descent_ratios.at[now].set(descent_ratio),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Task:
    """The data that the programs read, as arguments rather than constants.

    Attributes:
      train: objective of the full training set, or of the part on the devices.
      test: objective of the test set.
      curvature: objective whose curvature counts; None for the batch's.
      num_train: examples of the training set; by default `train` is all of it.
    """

    train: Objective
    test: Objective
    curvature: Objective | None
    num_train: int | None = dataclasses.field(default=None, metadata={"static": True})

    def with_curvature(self, curvature: Objective) -> "Task":
        """The same data with the curvature of another objective."""
        return dataclasses.replace(self, curvature=curvature)

    def batch(self, feed, index) -> Objective:
        """The objective of one mini-batch, unsplit.

        Args:
          feed: as in `steps.Programs.train`.
          index: int scalar, which of its steps.
        """
        if not isinstance(feed, Batches):
            return self.train.take(feed[index])
        inputs, targets = (x[index] for x in feed)
        return dataclasses.replace(
            self.train,
            inputs=inputs,
            targets=targets,
            microbatch_size=None,
            num_groups=1,
        )
