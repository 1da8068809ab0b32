"""Where `config.loss` becomes a per-example loss; and the accuracy of a classifier.

The config says how to sum squared errors over classes: sources disagree, and on ten
classes the sum shifts the effective learning rate by a factor of 10 to 20.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks

LossFn = Callable[[jax.Array, jax.Array], jax.Array]

_REDUCTIONS = {
    "sum": lambda squares: jnp.sum(squares, axis=-1),
    "half_sum": lambda squares: 0.5 * jnp.sum(squares, axis=-1),
    "mean": lambda squares: jnp.mean(squares, axis=-1),
}


# A dataclass rather than a closure, so that equal losses share compiled programs.
@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Squared distance of the outputs f to the one-hot targets y, per example.

    The reduction is "sum", Σ_c (f_c − y_c)² over the classes c, "half_sum",
    ½ Σ_c (f_c − y_c)², or "mean".
    """

    num_classes: int
    reduction: str

    def __call__(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Losses `(n,)` of outputs `(n, num_classes)` for int targets `(n,)`."""
        # Width 1 would broadcast against the one-hot targets and go unnoticed.
        if outputs.shape[-1] != self.num_classes:
            raise ValueError(
                f"outputs have shape {outputs.shape}, but the last dimension must "
                f"be the number of classes, {self.num_classes}."
            )
        one_hot = jax.nn.one_hot(targets, self.num_classes, dtype=outputs.dtype)
        return _REDUCTIONS[self.reduction](jnp.square(outputs - one_hot))


def build(config, num_classes: int) -> LossFn:
    """The loss that a config names.

    Args:
      config: has `name`, "mse" or "cross_entropy" (of softmax, in nats), and for "mse"
        `reduction`, see `SquaredError`.
      num_classes: width of the outputs.

    Returns:
      A function of outputs `(n, num_classes)` and int targets `(n,)` to losses `(n,)`
      in the dtype of the outputs. Equal configs give functions that compare equal.

    Raises:
      ValueError: if the name or the reduction is unknown.

    >>> from ml_collections import ConfigDict
    >>> loss_fn = build(ConfigDict({"name": "mse", "reduction": "half_sum"}), 2)
    >>> loss_fn(jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([0, 1])).tolist()
    [4.5, 0.5]
    """
    if config.name == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels
    checks.one_of("config.loss.name", config.name, ("mse", "cross_entropy"))
    checks.one_of("config.loss.reduction", config.reduction, _REDUCTIONS)
    return SquaredError(num_classes, config.reduction)


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of outputs `(n, classes)` that peak at their int target, a float32 scalar.

    Of several equal peaks the first counts.
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
