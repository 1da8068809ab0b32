"""Per-example losses on the outputs of a classifier, and its accuracy.

Sources disagree on how the squared error is summed over the classes, which shifts
the effective learning rate by a factor of 10 to 20 on ten classes. It is therefore
a field of the configuration.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

LossFn = Callable[[jax.Array, jax.Array], jax.Array]

_REDUCTIONS = {
    "sum": lambda squares: jnp.sum(squares, axis=-1),
    "half_sum": lambda squares: 0.5 * jnp.sum(squares, axis=-1),
    "mean": lambda squares: jnp.mean(squares, axis=-1),
}


# A dataclass rather than a closure: equal configurations compare equal, so that a
# jitted function that takes the loss as a static argument is not compiled again.
@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Squared distance of the outputs to the one-hot targets, per example.

    Attributes:
      num_classes: width of the outputs.
      reduction: over the classes c, with f the outputs and y the one-hot target:
        'sum' Σ_c (f_c − y_c)², 'half_sum' ½ Σ_c (f_c − y_c)², or 'mean', the sum
        over num_classes.

    >>> loss_fn = SquaredError(num_classes=2, reduction="sum")
    >>> loss_fn(jnp.array([[1.0, 3.0]]), jnp.array([0])).tolist()
    [9.0]
    """

    num_classes: int
    reduction: str

    def __call__(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Losses (n,) of outputs (n, num_classes) for int targets (n,).

        Raises:
          ValueError: the outputs are not num_classes wide.
        """
        # Width 1 would broadcast against the one-hot targets and go unnoticed.
        if outputs.shape[-1] != self.num_classes:
            raise ValueError(
                f"outputs have shape {outputs.shape}, but the last dimension must "
                f"be the number of classes, {self.num_classes}."
            )
        one_hot = jax.nn.one_hot(targets, self.num_classes, dtype=outputs.dtype)
        return _REDUCTIONS[self.reduction](jnp.square(outputs - one_hot))


def build(config, num_classes: int) -> LossFn:
    """The loss that a configuration names.

    Args:
      config: has `name`, 'mse' or 'cross_entropy', and for 'mse' `reduction`, one
        of 'sum', 'half_sum' and 'mean' (see `SquaredError`).
      num_classes: width of the outputs.

    Returns:
      loss_fn: outputs (n, num_classes) and int targets (n,) to losses (n,) in the
      dtype of the outputs; the mean over the examples is left to the caller. The
      cross-entropy is softmax and negative log-likelihood in nats. Equal
      configurations give functions that compare equal.

    Raises:
      ValueError: unknown name or reduction.

    >>> from ml_collections import ConfigDict
    >>> loss_fn = build(ConfigDict({"name": "mse", "reduction": "half_sum"}), 2)
    >>> loss_fn(jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([0, 1])).tolist()
    [4.5, 0.5]
    """
    if config.name == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels
    if config.name != "mse":
        raise ValueError(
            f"config.loss.name is {config.name!r}, but must be 'mse' or "
            "'cross_entropy'."
        )
    if config.reduction not in _REDUCTIONS:
        raise ValueError(
            f"config.loss.reduction is {config.reduction!r}, but must be one of "
            f"{', '.join(map(repr, _REDUCTIONS))}."
        )
    return SquaredError(num_classes, config.reduction)


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Fraction (a float32 scalar) of outputs (n, classes) that peak at the target.

    Targets are int (n,). Of several equal largest outputs the first counts.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).item()
    0.5
    """
    return jnp.mean(jnp.argmax(outputs, axis=-1) == targets, dtype=jnp.float32)


def label(config) -> str:
    """How figures name the loss of `config.loss`.

    >>> from ml_collections import ConfigDict
    >>> label(ConfigDict({"name": "mse", "reduction": "half_sum"}))
    'MSE (half sum over classes)'
    """
    if config.name == "mse":
        return f"MSE ({config.reduction.replace('_', ' ')} over classes)"
    return config.name.replace("_", "-")
