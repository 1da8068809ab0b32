"""Where `config.loss` becomes a per-example loss; and the accuracy of a classifier.

The config says how to sum squared errors over classes: sources disagree, and on ten
classes the sum shifts the effective learning rate by a factor of 10 to 20.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks
from bulk_sgd.curvature import separable
from bulk_sgd.lab import plugins

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
      config: has `name`, "mse", "cross_entropy" (of softmax, in nats) or the import
        path of such a function, and for "mse" `reduction`, see `SquaredError`.
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
    make = plugins.entry("config.loss.name", config.name, _LOSSES, _own)
    return make(config, num_classes)


def _squared_error(config, num_classes):
    checks.one_of("config.loss.reduction", config.reduction, _REDUCTIONS)
    return SquaredError(num_classes, config.reduction)


def _own(path):
    loss_fn = plugins.load("config.loss.name", path)

    def build(config, num_classes):
        options = config.options.to_dict()
        own = functools.partial(loss_fn, **options) if options else loss_fn
        return plugins.Function(plugins.words(config), own)

    return build


_LOSSES = {
    "mse": _squared_error,
    "cross_entropy": lambda *_: optax.softmax_cross_entropy_with_integer_labels,
}


def check_mean(config, loss_fn: LossFn, outputs, targets):
    """Raises ValueError if the loss is not a mean, given the shapes of one example."""
    check = lambda *examples: separable.check(loss_fn, *examples, 1, advice="")
    try:
        jax.eval_shape(check, outputs, targets)
    except checks.ArgumentError as error:
        field = f"config.loss.name is {config.name!r}, which"
        raise ValueError(f"{field} {error.problem}") from None


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of outputs `(n, classes)` that peak at their int target, a float32 scalar.

    Of several equal peaks the first counts. The result is NaN if the targets are not
    ints, and for a single output.
    """
    if not jnp.issubdtype(targets.dtype, jnp.integer) or outputs.shape[-1] == 1:
        return jnp.float32(jnp.nan)
    return jnp.mean(jnp.argmax(outputs, axis=-1) == targets, dtype=jnp.float32)


def label(config) -> str:
    """How figures name the loss of `config.loss`.

    >>> from ml_collections import ConfigDict
    >>> label(ConfigDict({"name": "mse", "reduction": "half_sum"}))
    'MSE (half sum over classes)'
    """
    if config.name == "mse":
        return f"MSE ({config.reduction.replace('_', ' ')} over classes)"
    return config.name.rpartition(":")[2].replace("_", "-")
