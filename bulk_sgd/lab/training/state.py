"""What goes into the training program and what comes out of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab.data.reader import Batches
from bulk_sgd.spectra.eigenvectors import Displacement
from bulk_sgd.transforms.guard import Memory
from bulk_sgd.transforms.scale_by_subspace import ScaleBySubspaceState


class Scalars(NamedTuple):
    """The numbers in which runs of one program may differ."""

    learning_rate: Any  # or what its schedule multiplies
    dominant_scale: Any = 1.0
    bulk_scale: Any = 1.0
    refresh_every: Any = 1  # steps
    threshold: Any = jnp.inf  # the last step's average alignment is the first above it
    seed: Any = 0  # of the solver's random directions
    guarded: Any = False  # whether the guard of `bulk_sgd.accelerated` applies


class TrainState(NamedTuple):
    """What one run carries from step to step."""

    step: jax.Array  # int32, since the start of the prefix
    params: Any
    inner: Any  # of the optimizer
    projection: ScaleBySubspaceState
    loss: jax.Array  # of the last batch
    memory: Memory  # of the guard


class Trace(NamedTuple):
    """What happened in one dispatch: arrays `(n,)`, zero beyond `num_steps`.

    The descent ratio is ⟨g, v⟩ / ⟨g, u⟩ with g the batch gradient, u the incoming and v
    the scaled update: to first order, the share of the decrease of the batch loss that
    the scales leave. `scaled` says where the guard of a guarded arm let its scales act.
    With `config.measures.step_every`, the displacement is how far the
    subspace turns in the whole dispatch. It needs a second copy of the basis.
    """

    num_steps: jax.Array  # int32
    batch_losses: jax.Array
    alignments: jax.Array  # χ_k of the incoming updates
    descent_ratios: jax.Array
    scaled: jax.Array
    displacement: Displacement | None = None

    @classmethod
    def blank(cls, feed) -> "Trace":
        """The trace before the first step of a dispatch with this feed."""
        zeros = jnp.zeros(len(jax.tree.leaves(feed)[0]))
        return cls(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def add(self, loss, alignment, descent_ratio, scaled) -> "Trace":
        """The trace after one more step."""
        now = self.num_steps
        return Trace(
            num_steps=now + 1,
            batch_losses=self.batch_losses.at[now].set(loss),
            alignments=self.alignments.at[now].set(alignment),
            descent_ratios=self.descent_ratios.at[now].set(descent_ratio),
            scaled=self.scaled.at[now].set(scaled),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Task:
    """The data that the programs read, as arguments rather than constants."""

    train: Objective  # of the training set, or of its part on the devices
    test: Objective
    curvature: Objective | None  # whose curvature counts; None for the batch's
    # Examples of the training set; by default `train` is all of it.
    num_train: int | None = dataclasses.field(default=None, metadata={"static": True})

    def with_curvature(self, curvature: Objective) -> "Task":
        """The same data with the curvature of another objective."""
        return dataclasses.replace(self, curvature=curvature)

    def batch(self, feed, index) -> Objective:
        """The objective of one mini-batch of a feed, unsplit."""
        if not isinstance(feed, Batches):
            return self.train.take(feed[index])
        inputs, targets = (x[index] for x in feed)
        part = {"inputs": inputs, "targets": targets}
        return dataclasses.replace(
            self.train, **part, microbatch_size=None, num_groups=1
        )
