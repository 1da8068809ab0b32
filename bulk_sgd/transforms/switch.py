"""When a transform starts to act on the updates."""

import dataclasses

import jax.numpy as jnp

from bulk_sgd import checks


@dataclasses.dataclass(frozen=True)
class Switch:
    """When a transform starts to act; until then, it passes updates through unchanged.

    The transform starts once an exponential moving average of the alignment ‖P u‖ / ‖u‖
    of the updates u exceeds `alignment`, or at step `step` if that comes first. Here P
    projects onto the dominant subspace. This is the protocol of Song et al. (arXiv
    2405.16002, section 4). The average starts at 0; with the default decay it needs at
    least 29 steps to reach 0.95.

    Attributes:
      step: the latest step at which to start, at least 0. None sets no latest step. If
        `alignment` is None too, the transform starts at step 0.
      alignment: threshold between 0 and 1. With None, only `step` counts, and the
        transform computes no curvature before that step.
      decay: weight of the old average, in [0, 1); the new alignment has 1 − decay.

    Raises:
      ValueError: if a field is out of its range.

    Example:
      >>> import bulk_sgd
      >>> switch = bulk_sgd.Switch(step=20_000, alignment=0.95)
      >>> tx = bulk_sgd.project_bulk(rank=10, switch=switch)
    """

    step: int | None = None
    alignment: float | None = None
    decay: float = 0.9

    def __post_init__(self):
        if self.step is not None:
            checks.integer("switch.step", self.step, 0, static=False)
        if self.alignment is not None:
            checks.between("switch.alignment", self.alignment, 0, 1)
        checks.between("switch.decay", self.decay, 0, 1, below=True)

    @property
    def first_needed(self) -> int:
        """First step that needs a subspace."""
        return 0 if self.alignment is not None or self.step is None else self.step

    def averaged(self, average, alignment):
        """The average after one more alignment, which counts only if it is finite."""
        new = self.decay * average + (1 - self.decay) * alignment
        return jnp.where(jnp.isfinite(alignment), new, average).astype(average.dtype)

    def acts(self, count, average):
        """Whether to act at step `count`, given the average alignment so far."""
        acts = jnp.zeros((), bool)
        if self.step is not None:
            acts |= count >= self.step
        elif self.alignment is None:
            acts |= True
        if self.alignment is not None:
            acts |= average > self.alignment
        return acts
