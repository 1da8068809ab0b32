"""What is differentiated: a model, a loss and a set of data, in microbatches.

`Objective` is a scalar function of the parameters that remembers its two parts, the
model f and the loss ℓ, which Gauss-Newton products need, and its data, which
memory-bounded products walk in microbatches. It is a pytree (its leaves are the
data), so it passes through `jax.jit` as an argument: the data are then neither
baked into the program as constants nor copied.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    r"""Mean loss of a model over a set of examples, L(θ) = mean_n ℓ(f(θ, x_n), y_n).

    Attributes:
      model_fn: `model_fn(params, inputs) -> outputs`, deterministic, with the examples
        along the leading axis of inputs and outputs and no coupling between examples
        (batch normalisation in training mode couples them and has no well-defined
        Hessian per example).
      loss_fn: `loss_fn(outputs, targets) -> losses`, one loss per example, shape
        `(n,)` (further axes are averaged too), or the mean over examples, shape `()`.
      inputs: pytree of arrays with a common leading axis n.
      targets: pytree of arrays with the same leading axis.
      microbatch_size: None evaluates all n examples at once. Otherwise values,
        gradients and curvature products are accumulated over microbatches of this
        many examples, so that memory is bounded by one microbatch; the last one may be
        smaller. The result equals the full batch's to rounding.
      num_groups: groups in which a microbatch is evaluated side by side, and which are
        added up after the last one. With examples split over that many devices, and
        parameters whole on each, a product then takes one all-reduce, not one for each
        microbatch; with sharded parameters the groups would cost what sharding saves.

    Raises:
      ValueError: if the leading axes differ, there is no example, or
        `microbatch_size` or `num_groups` is less than 1.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> model_fn = lambda params, x: x @ params
      >>> loss_fn = lambda outputs, y: 0.5 * (outputs - y) ** 2
      >>> x, y = jnp.eye(4), jnp.arange(4.0)
      >>> objective = bulk_sgd.Objective(model_fn, loss_fn, x, y, microbatch_size=3)
      >>> float(objective(jnp.zeros(4)))  # (0 + 1 + 4 + 9) / 2 / 4
      1.75
    """

    model_fn: Callable = dataclasses.field(metadata={"static": True})
    loss_fn: Callable = dataclasses.field(metadata={"static": True})
    inputs: Any
    targets: Any
    microbatch_size: int | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    num_groups: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self):
        leaves = jax.tree.leaves((self.inputs, self.targets))
        if not all(hasattr(leaf, "shape") for leaf in leaves):
            return  # a tree of placeholders, as jax makes when it rebuilds pytrees
        lengths = {leaf.shape[0] if leaf.shape else None for leaf in leaves}
        if len(lengths) != 1 or lengths & {0, None}:
            shapes = [leaf.shape for leaf in leaves]
            raise ValueError(
                "inputs and targets of an Objective need one common leading axis of at "
                f"least one example; got shapes {shapes}."
            )
        if self.microbatch_size is not None:
            checks.integer("microbatch_size", self.microbatch_size, 1)
        checks.integer("num_groups", self.num_groups, 1)

    @property
    def num_examples(self) -> int:
        """Number of examples, the length of the common leading axis."""
        return jax.tree.leaves(self.inputs)[0].shape[0]

    @property
    def is_split(self) -> bool:
        """Whether products are accumulated over more than one microbatch."""
        return (
            self.microbatch_size is not None
            and self.microbatch_size < self.num_examples
        )

    def __call__(self, params):
        """The mean loss at `params`, a scalar."""

        if not self.is_split:
            return self.loss(self.outputs(params))
        return self.mean_over_microbatches(lambda part: part(params))

    def outputs(self, params):
        """Model outputs on all examples at once."""
        return self.model_fn(params, self.inputs)

    def loss(self, outputs):
        """Mean loss of given outputs, a scalar."""
        return jnp.mean(self.loss_fn(outputs, self.targets))

    def mean_over_microbatches(self, fn):
        """Average of `fn(part)` over the microbatches, weighted by their examples.

        Args:
          fn: function of an unsplit `Objective` on one microbatch, which returns a
            pytree of arrays; it is traced three times at most, whatever their number.

        Returns:
          `sum_b (n_b / n) fn(part_b)`, with the structure of one `fn(part)`.

        Raises:
          ValueError: if the groups do not split all microbatches evenly.
        """
        if not self.is_split:
            return fn(self._part(self.inputs, self.targets))
        size, total = self.microbatch_size, self.num_examples
        num_full = total // size
        if size % self.num_groups or total % self.num_groups:
            raise ValueError(
                f"num_groups is {self.num_groups}; it must divide the microbatch_size, "
                f"{size}, and the number of examples, {total}."
            )
        groups = (self.num_groups,) if self.num_groups > 1 else ()
        axis, part_size = len(groups), size // self.num_groups
        data = jax.tree.map(
            lambda x: x.reshape(*groups, total // self.num_groups, *x.shape[1:]),
            (self.inputs, self.targets),
        )
        cut = lambda x, *ends: jax.lax.slice_in_dim(x, *ends, axis=axis)
        # Every num_full-th example of a group: where examples are split over devices,
        # so is then each part, and no example moves.
        full = jax.tree.map(
            lambda x: cut(x, 0, num_full * part_size).reshape(
                *groups, part_size, num_full, *x.shape[axis + 1 :]
            ),
            data,
        )

        # Recomputed in a backward pass: else a gradient would keep the activations of
        # every microbatch at once, and a copy of the data.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def weighted_part(index):
            part_data = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, index, axis + 1, False),
                full,
            )
            return weighted(part_data, size)

        def weighted(part_data, count):
            evaluate = lambda data: fn(self._part(*data))
            value = (jax.vmap(evaluate) if groups else evaluate)(part_data)
            weight = count / total / self.num_groups
            return jax.tree.map(lambda x: x * weight, value)

        def step(mean, index):
            return jax.tree.map(jnp.add, mean, weighted_part(index)), None

        shapes = jax.eval_shape(weighted_part, 0)
        mean = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        mean, _ = jax.lax.scan(step, mean, jnp.arange(num_full))
        remainder = total - num_full * size
        if remainder:
            last = jax.tree.map(lambda x: cut(x, num_full * part_size, None), data)
            mean = jax.tree.map(jnp.add, mean, weighted(last, remainder))
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), mean) if groups else mean

    def take(self, indices):
        """The objective of the examples `indices`, an int array `(m,)`, unsplit."""
        data = (self.inputs, self.targets)
        data = jax.tree.map(lambda x: jnp.asarray(x)[indices], data)
        return self._part(*data)

    def reparametrize(self, embed):
        """The objective as a function of x, where the parameters are `embed(x)`."""
        return dataclasses.replace(
            self, model_fn=lambda x, inputs: self.model_fn(embed(x), inputs)
        )

    def _part(self, inputs, targets):
        return dataclasses.replace(
            self,
            inputs=inputs,
            targets=targets,
            microbatch_size=None,
            num_groups=1,
        )
