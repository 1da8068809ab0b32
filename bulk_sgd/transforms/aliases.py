"""Whole optimizers: SGD with its gradient scaled inside and outside the subspace.

For any other inner optimizer chain the transforms of `bulk_sgd.transforms` with it.
"""

import optax

from bulk_sgd import checks
from bulk_sgd.transforms.scale_by_subspace import scale_by_subspace, takes_options

PATHS = {
    "bulk": lambda alpha: (alpha, 1.0),
    "dom": lambda alpha: (1.0, alpha),
    "cross": lambda alpha: (alpha, 1 - alpha),
}


def path_scales(path: str, alpha):
    """The scales (a, b) of one point of a one-parameter family of methods.

    | path    | (a, b)     | α = 0    | α = 1   |
    |---------|------------|----------|---------|
    | "bulk"  | (α, 1)     | Bulk-SGD | SGD     |
    | "dom"   | (1, α)     | Dom-SGD  | SGD     |
    | "cross" | (α, 1 − α) | Bulk-SGD | Dom-SGD |

    The cross path halves the step of SGD at α = ½. α is not confined to [0, 1]: the
    bulk path beyond 1 amplifies the sharp part.

    Args:
      path: "bulk", "dom" or "cross".
      alpha: a number, possibly traced.

    Returns:
      The pair (dominant_scale, bulk_scale).

    Raises:
      ValueError: if the path is unknown.

    Example:
      >>> import bulk_sgd
      >>> bulk_sgd.path_scales("cross", 0.25)
      (0.25, 0.75)
    """
    checks.one_of("path", path, PATHS)
    return PATHS[path](alpha)


@takes_options
def bulk_sgd(
    learning_rate: optax.ScalarOrSchedule, rank: int, **options
) -> optax.GradientTransformationExtraArgs:
    """Bulk-SGD: θ ← θ − η (g − P g) (arXiv 2505.11972).

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k that are projected out.
      **options: keyword arguments of `scale_by_subspace`.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, or as `scale_by_subspace` does.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> loss = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2
      >>> tx = bulk_sgd.bulk_sgd(0.1, rank=1)
      >>> params = jnp.array([1.0, 1.0])
      >>> updates, _ = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> print(abs(updates).round(3))
      [0.  0.1]
    """
    return _scaled_sgd(learning_rate, rank, 0.0, 1.0, options)


@takes_options
def dom_sgd(
    learning_rate: optax.ScalarOrSchedule, rank: int, **options
) -> optax.GradientTransformationExtraArgs:
    """Dom-SGD: θ ← θ − η P g (Song, Ahn and Yun, arXiv 2405.16002).

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k that are kept.
      **options: keyword arguments of `scale_by_subspace`.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, or as `scale_by_subspace` does.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.dom_sgd(0.01, rank=10, refresh_every=5)
    """
    return _scaled_sgd(learning_rate, rank, 1.0, 0.0, options)


@takes_options
def interpolated_sgd(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    alpha: optax.ScalarOrSchedule,
    path: str = "bulk",
    **options,
) -> optax.GradientTransformationExtraArgs:
    """A point between SGD, Dom-SGD and Bulk-SGD: θ ← θ − η (a P g + b (g − P g)).

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k.
      alpha: position α on the path, a number or a schedule of the step.
      path: "bulk", "dom" or "cross"; see `path_scales` for the formulas.
      **options: keyword arguments of `scale_by_subspace`.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, alpha neither a number nor a schedule of
        the step, the path unknown, or as `scale_by_subspace` does.

    Example:
      >>> import optax, bulk_sgd
      >>> fade = optax.linear_schedule(0.0, 1.0, 1000)  # from Bulk-SGD to SGD
      >>> tx = bulk_sgd.interpolated_sgd(0.01, rank=10, alpha=fade)
    """
    checks.scale("alpha", alpha)
    if not callable(alpha):
        dominant, bulk = path_scales(path, alpha)
    else:
        path_scales(path, 0.0)
        dominant = lambda step: path_scales(path, alpha(step))[0]
        bulk = lambda step: path_scales(path, alpha(step))[1]
    return _scaled_sgd(learning_rate, rank, dominant, bulk, options)


def _scaled_sgd(learning_rate, rank, dominant_scale, bulk_scale, options):
    if not callable(learning_rate):
        checks.at_least("learning_rate", learning_rate, 0)
    return optax.chain(
        scale_by_subspace(rank, dominant_scale, bulk_scale, **options),
        optax.scale_by_learning_rate(learning_rate),
    )
