"""What is differentiated: a model, a loss and a set of data, in microbatches.

An `Objective` is a scalar function of the parameters that knows its parts. Gauss-Newton
products need the model f and the loss ℓ as separate functions. Products in bounded
memory walk through the data in microbatches. An `Objective` is a pytree whose leaves
are the data, so it passes through `jax.jit` as an argument: the data are neither copied
nor baked into the program as constants.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature import separable
from bulk_sgd.curvature.captured import Reading


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Objective:
    r"""Mean loss of a model over a set of examples, L(θ) = mean_n ℓ(f(θ, x_n), y_n).

    With weights w_n it is Σ_n w_n ℓ(f(θ, x_n), y_n) / Σ_n w_n.

    Attributes:
      model_fn: `model_fn(params, inputs) -> outputs`, deterministic. Examples lie along
        the leading axis of inputs and outputs and must not affect each other, as they
        do under batch normalisation in training mode.
      loss_fn: `loss_fn(outputs, targets) -> losses`. It returns one loss per example,
        `(n,)`, or several, such as one per token, `(n, T)`, or the mean of all losses,
        `()`. It must not return a sum, and the loss of an example must not depend on
        other examples.
      inputs: pytree of arrays with a common leading axis n.
      targets: pytree of arrays with the same leading axis.
      microbatch_size: None evaluates all n examples at once. Otherwise values,
        gradients and curvature products are accumulated over microbatches of this
        many examples; the last microbatch may be smaller. Memory is then bounded by one
        microbatch, and results are the same to rounding.
      num_groups: number of groups into which each microbatch is split. Each group has
        its own running sum; the sums are added after the last microbatch. In data
        parallelism with replicated parameters, set it to the number of devices: a
        product takes one all-reduce, not one per microbatch. With sharded parameters
        leave it at 1: groups would cost the memory that sharding saves.
      weights: None, or an array of the shape of the losses that `loss_fn` returns, such
        as a mask of examples `(n,)` or of tokens `(n, T)`. Even losses of weight zero
        must be finite. If all weights are zero, values and products raise an error, or
        are NaN if the weights are traced.

    Raises:
      TypeError: if `model_fn` or `loss_fn` does not take two arguments. Later calls
        raise it if either function fails or returns auxiliary outputs.
      ValueError: if the leading axes differ, if there is no example, or if
        `microbatch_size` or `num_groups` is less than 1. Later calls raise it if
        `loss_fn` returns a sum, or losses that depend on other examples, if weights and
        losses differ in shape, or if the sum of the weights is not positive.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> model_fn = lambda params, x: x @ params
      >>> loss_fn = lambda outputs, y: 0.5 * (outputs - y) ** 2
      >>> x, y = jnp.eye(4), jnp.arange(4.0)
      >>> objective = bulk_sgd.Objective(model_fn, loss_fn, x, y, microbatch_size=3)
      >>> float(objective(jnp.zeros(4)))  # (0 + 1 + 4 + 9) / 2 / 4
      1.75
    """

    model_fn: Callable
    loss_fn: Callable
    inputs: Any
    targets: Any
    microbatch_size: int | None = None
    num_groups: int = 1
    weights: Any = None

    def __post_init__(self):
        functions.check("model_fn", self.model_fn, "params", "inputs")
        functions.check("loss_fn", self.loss_fn, "outputs", "targets")
        for name in ("inputs", "targets", "weights"):
            checks.numeric(name, getattr(self, name))
        if not jax.tree.leaves(self.inputs):
            raise checks.ArgumentError("inputs", "has no arrays; it must have some.")
        shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves(self._data)]
        lengths = {shape[0] if shape else None for shape in shapes}
        if len(lengths) != 1 or lengths & {0, None}:
            raise ValueError(
                "inputs, targets and weights of an Objective need one common leading "
                f"axis of at least one example; got shapes {shapes}."
            )
        if self.microbatch_size is not None:
            checks.integer("microbatch_size", self.microbatch_size, 1)
        checks.integer("num_groups", self.num_groups, 1)

    def tree_flatten_with_keys(self):
        """The data are leaves; everything else selects the compiled program."""
        names = "inputs", "targets", "weights"
        data = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        functions = Reading.of(self.model_fn), Reading.of(self.loss_fn)
        return data, (functions, self.microbatch_size, self.num_groups)

    @classmethod
    def tree_unflatten(cls, static, data):
        """An objective of any leaves, such as placeholders of JAX, unchecked."""
        functions, size, num_groups = static
        made, names = object.__new__(cls), [x.name for x in dataclasses.fields(cls)]
        values = *(x.fn for x in functions), *data[:2], size, num_groups, data[2]
        for name, value in zip(names, values):
            object.__setattr__(made, name, value)
        return made

    @property
    def _data(self):
        return self.inputs, self.targets, self.weights

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
        return functions.call("model_fn", self.model_fn, params, self.inputs)

    def loss(self, outputs):
        """Mean loss of given outputs, a scalar."""
        separable.check(self.loss_fn, outputs, self.targets, self.num_examples)
        losses = self._losses(outputs)
        if self.weights is None:
            return jnp.mean(losses)
        if jnp.shape(self.weights) != losses.shape:
            raise checks.ArgumentError(
                "weights",
                f"is of shape {jnp.shape(self.weights)}; it must have the shape of the "
                f"losses that loss_fn returns, {losses.shape}.",
            )
        total = jnp.sum(jnp.asarray(self.weights, float) * losses)
        return (total / self.total_weight()).astype(losses.dtype)

    def _losses(self, outputs):
        """What `loss_fn` returns, checked to be one array of real numbers."""
        hint = ""
        if not isinstance(outputs, jax.Array):
            kind = type(outputs).__name__
            hint = f"; model_fn returned a {kind}, perhaps with auxiliary outputs"
        losses = functions.call(
            "loss_fn", self.loss_fn, outputs, self.targets, hint=hint
        )
        functions.returned("loss_fn", losses, "one array of real losses")
        return losses

    def total_weight(self):
        """The sum of the weights, a scalar; without weights the number of examples.

        Raises ArgumentError if the sum is known and not positive, or if a weight is
        known and negative.
        """
        if self.weights is None:
            return self.num_examples
        weights = jnp.asarray(self.weights, float)
        total, least = jnp.sum(weights), jnp.min(weights)
        if isinstance(total, jax.core.Tracer) or not total.is_fully_addressable:
            return total
        if not (least >= 0 and 0 < total < jnp.inf):
            raise checks.ArgumentError(
                "weights",
                f"has the sum {total} and the least entry {least}; it must be finite, "
                "nowhere negative, and positive somewhere.",
            )
        return total

    def mean_over_microbatches(self, fn):
        """`sum_b (n_b / n) fn(part_b)` over the microbatches b of n_b examples.

        With weights, n_b and n are sums of weights. If all weights of a microbatch are
        zero, n_b is zero, and `fn` gets weights of one, so that its result is finite.

        Args:
          fn: function from the unsplit `Objective` of one microbatch to a pytree of
            arrays; traced three times at most, however many microbatches there are.

        Raises:
          ValueError: if the groups do not split all microbatches evenly.
        """
        if not self.is_split:
            return fn(self._part(*self._data))
        full, last = self._microbatches()
        axis = 1 if self.num_groups == 1 else 2  # of the full microbatches
        total = self.total_weight()

        def weighted(data):
            """What a microbatch, or a group of it, adds to the mean."""
            weight = jax.tree.leaves(data)[0].shape[0] / total
            if self.weights is not None:
                own = jnp.asarray(data[2], float)
                weight = jnp.sum(own) / total
                data = *data[:2], jnp.where(jnp.any(own), own, 1)
            scale = lambda x: x * jnp.asarray(weight, jnp.result_type(x, 1.0))
            return jax.tree.map(scale, fn(self._part(*data)))

        if self.num_groups > 1:
            weighted = jax.vmap(weighted)

        # Recomputed in a backward pass: a gradient would otherwise keep the activations
        # of every microbatch at once, and a copy of the data.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def weighted_full(index):
            take = lambda x: jax.lax.dynamic_index_in_dim(x, index, axis, False)
            return weighted(jax.tree.map(take, full))

        def step(mean, index):
            return jax.tree.map(jnp.add, mean, weighted_full(index)), None

        shapes = jax.eval_shape(weighted_full, 0)
        mean = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        num_full = self.num_examples // self.microbatch_size
        mean, _ = jax.lax.scan(step, mean, jnp.arange(num_full))
        if last is not None:
            mean = jax.tree.map(jnp.add, mean, weighted(last))
        if self.num_groups > 1:
            mean = jax.tree.map(lambda x: jnp.sum(x, axis=0), mean)
        return mean

    def _microbatches(self):
        """The data of all full microbatches, and of the smaller last one or None.

        Leaves of the first have shape `(microbatch_size, num_full, …)`, leaves of the
        second `(remainder, …)`. With groups both have a leading axis for them, and the
        examples of each microbatch are split among the groups.
        """
        size, total = self.microbatch_size, self.num_examples
        num_groups = self.num_groups
        if size % num_groups or total % num_groups:
            raise ValueError(
                f"num_groups is {num_groups}; it must divide the microbatch_size, "
                f"{size}, and the number of examples, {total}."
            )
        groups = (num_groups,) if num_groups > 1 else ()
        axis, part_size, num_full = len(groups), size // num_groups, total // size
        end = num_full * part_size
        cut = lambda x, *ends: jax.lax.slice_in_dim(x, *ends, axis=axis)
        data = jax.tree.map(
            lambda x: x.reshape(*groups, total // num_groups, *x.shape[1:]),
            self._data,
        )
        # A microbatch takes every num_full-th example: where the examples are split
        # over devices, so is each microbatch, and no example moves.
        full = jax.tree.map(
            lambda x: cut(x, 0, end).reshape(
                *groups, part_size, num_full, *x.shape[axis + 1 :]
            ),
            data,
        )
        last = None
        if total > num_full * size:
            last = jax.tree.map(lambda x: cut(x, end, None), data)
        return full, last

    def take(self, indices):
        """The objective of the examples at `indices`, in one microbatch.

        `indices` is an int array `(m,)` or a slice.
        """
        data = jax.tree.map(lambda x: jnp.asarray(x)[indices], self._data)
        return self._part(*data)

    def reparametrize(self, embed):
        """The objective as a function of x, where the parameters are `embed(x)`."""
        return dataclasses.replace(
            self, model_fn=lambda x, inputs: self.model_fn(embed(x), inputs)
        )

    def _part(self, inputs, targets, weights):
        data = {"inputs": inputs, "targets": targets, "weights": weights}
        return dataclasses.replace(self, **data, microbatch_size=None, num_groups=1)
