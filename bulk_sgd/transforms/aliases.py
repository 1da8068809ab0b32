"""The methods of the paper by name: `scale_by_subspace` with given scales.

`project_bulk` and `project_dominant` are transforms to chain with an optax optimizer.
`bulk_sgd`, `dom_sgd` and `interpolated_sgd` are SGD on the scaled gradient.
"""

from collections.abc import Callable
from typing import Any

import optax

from bulk_sgd import checks
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.transforms import scales
from bulk_sgd.transforms.scale_by_subspace import scale_by_subspace
from bulk_sgd.transforms.switch import Switch

PATHS = {
    "bulk": lambda alpha: (alpha, 1.0),
    "dom": lambda alpha: (1.0, alpha),
    "cross": lambda alpha: (alpha, 1 - alpha),
}


def path_scales(path: str, alpha):
    """Returns the scales (a, b) at one point of a path between methods.

    | path    | (a, b)     | α = 0    | α = 1   |
    |---------|------------|----------|---------|
    | "bulk"  | (α, 1)     | Bulk-SGD | SGD     |
    | "dom"   | (1, α)     | Dom-SGD  | SGD     |
    | "cross" | (α, 1 − α) | Bulk-SGD | Dom-SGD |

    At α = ½ the cross path gives SGD with half the learning rate. α may lie outside of
    [0, 1]: beyond 1 the bulk path amplifies the sharp part.

    Args:
      path: "bulk", "dom" or "cross".
      alpha: a number, possibly traced.

    Returns:
      The pair (dominant_scale, bulk_scale).

    Raises:
      ValueError: if the path is unknown, or alpha is not a number.

    Example:
      >>> import bulk_sgd
      >>> bulk_sgd.path_scales("cross", 0.25)
      (0.25, 0.75)
    """
    checks.one_of("path", path, PATHS)
    checks.at_least("alpha", alpha)
    return PATHS[path](alpha)


def project_bulk(
    rank: int,
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Removes the dominant part of the updates: u ← u − P u, (a, b) = (0, 1).

    `scale_by_subspace` explains P and the keyword-only arguments. With Adam, put it
    first in the chain, so that it acts on the gradient.

    Args:
      rank: number of leading eigenvectors k.

    Returns:
      A transform whose state is a `ScaleBySubspaceState`.

    Example:
      >>> import optax, bulk_sgd
      >>> tx = optax.chain(bulk_sgd.project_bulk(rank=10), optax.adam(1e-3))
    """
    return scale_by_subspace(
        rank, 0.0, 1.0, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip


def project_dominant(
    rank: int,
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps only the dominant part of the updates: u ← P u, (a, b) = (1, 0).

    `scale_by_subspace` explains P and the keyword-only arguments.

    Args:
      rank: number of leading eigenvectors k.

    Returns:
      A transform whose state is a `ScaleBySubspaceState`.

    Example:
      >>> import optax, bulk_sgd
      >>> tx = optax.chain(optax.sgd(0.01), bulk_sgd.project_dominant(rank=10))
    """
    return scale_by_subspace(
        rank, 1.0, 0.0, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip


def bulk_sgd(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Bulk-SGD: θ ← θ − η (g − P g) (arXiv 2505.11972).

    g is the gradient. `scale_by_subspace` explains P and the keyword-only arguments.

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k to project out.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, or as in `scale_by_subspace`.

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
    transform = scale_by_subspace(
        rank, 0.0, 1.0, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip
    return _sgd(learning_rate, transform)


def dom_sgd(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Dom-SGD: θ ← θ − η P g (Song, Ahn and Yun, arXiv 2405.16002).

    g is the gradient. `scale_by_subspace` explains P and the keyword-only arguments.

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k to keep.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, or as in `scale_by_subspace`.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.dom_sgd(0.01, rank=10, refresh_every=5)
    """
    transform = scale_by_subspace(
        rank, 1.0, 0.0, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip
    return _sgd(learning_rate, transform)


def interpolated_sgd(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    alpha: optax.ScalarOrSchedule,
    path: str = "bulk",
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """A point between SGD, Dom-SGD and Bulk-SGD: θ ← θ − η (a P g + b (g − P g)).

    g is the gradient. `scale_by_subspace` explains P and the keyword-only arguments.

    Args:
      learning_rate: the rate η, a number at least 0 or a schedule.
      rank: number of leading eigenvectors k.
      alpha: position α on the path, a number or a schedule of the step.
      path: "bulk", "dom" or "cross"; `path_scales` gives (a, b) for each.

    Returns:
      An optimizer whose `update` takes `value_fn`.

    Raises:
      ValueError: if the rate is negative, if alpha is neither a number nor a schedule
        of the step, if the path is unknown, or as in `scale_by_subspace`.

    Example:
      >>> import optax, bulk_sgd
      >>> fade = optax.linear_schedule(0.0, 1.0, 1000)  # from Bulk-SGD to SGD
      >>> tx = bulk_sgd.interpolated_sgd(0.01, rank=10, alpha=fade)
    """
    scales.check("alpha", alpha)
    if callable(alpha):
        checks.one_of("path", path, PATHS)
        dominant = lambda step: path_scales(path, alpha(step))[0]
        bulk = lambda step: path_scales(path, alpha(step))[1]
    else:
        dominant, bulk = path_scales(path, alpha)
    transform = scale_by_subspace(
        rank, dominant, bulk, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip
    return _sgd(learning_rate, transform)


def _sgd(learning_rate, transform):
    if callable(learning_rate):
        scales.check("learning_rate", learning_rate)
    else:
        checks.at_least("learning_rate", learning_rate, 0)
    return optax.chain(transform, optax.scale_by_learning_rate(learning_rate))
