"""Wraps any optax optimizer: guarded scales make it faster in the bulk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks, functions
from bulk_sgd.solvers.solver import Solver, check_solver
from bulk_sgd.solvers.streaming import streaming
from bulk_sgd.transforms import scale_by_subspace as transform
from bulk_sgd.transforms import scales
from bulk_sgd.transforms.eager import Watch
from bulk_sgd.transforms.guard import Guard, Memory
from bulk_sgd.transforms.switch import Switch

# Defaults of `accelerated` and of the lab's arm.
SCALES = 0.25, 2.0
THRESHOLD, TOL, SURGE = 2.0, 1.0, 3.0
_UNKNOWN = (
    "update is left as inner made it. This remains so until enough products succeed: "
    "see whether the loss and its Hessian are finite, and whether the solver converges."
)


class AcceleratedState(NamedTuple):
    """State of `accelerated`; read fields with `optax.tree_utils.tree_get`.

    Attributes:
      inner_state: the state of the inner optimizer.
      projection: the `ScaleBySubspaceState`.
      memory: what the safeguards remember, a `Memory` of `transforms/guard.py`.
      scaled: bool, whether the last step was scaled; if not, it was the step of the
        inner optimizer.
    """

    inner_state: Any
    projection: transform.ScaleBySubspaceState
    memory: Memory
    scaled: jax.Array


def accelerated(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    rank: int = 10,
    dominant_scale: float = SCALES[0],
    bulk_scale: float = SCALES[1],
    threshold: float = THRESHOLD,
    tol: float = TOL,
    surge: float = SURGE,
    metric: Callable | None = None,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 100,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer: shorter steps along sharp directions, longer ones elsewhere.

    An update u of `inner` becomes a·P u + b·(u − P u), as in `scale_by_subspace`. By
    default P projects onto the ten leading eigenvectors of the Hessian, averaged over
    mini-batches by the solver `streaming` in factors. From `switch` on, this takes one
    product per step during six sweeps over the basis (6·k steps), and later one product
    every 16th step. Tune only the learning rate. Pass `update` either `value_fn`, the
    loss of the mini-batch, or `matvec`, which multiplies a vector by the Hessian of
    this loss.

    The step equals the step of `inner`, bit for bit,

    - before `switch`, and until six products per vector have succeeded, or as many as
      the attribute `sweeps` of `solver` says, mostly ten;
    - while a residual exceeds `tol` times the largest eigenvalue λ_1;
    - after a solve fails, for example on products that are not finite, until a solve
      succeeds;
    - where the norm of the gradient is NaN or exceeds `surge` times its running average
      over some 20 steps before; after two such steps in a row, until one more product
      per vector has succeeded;
    - while λ_1 is not positive;
    - while max(a, 1)·η·λ_1 exceeds the stability `threshold`, with η the learning rate.
      Steps with a < 1 let λ_1 grow. Above the threshold unscaled steps are unstable,
      and this lowers λ_1 again. The default solver's λ_1 is up to 16·k steps old.

    The last condition is for SGD and momentum. Adam and Muon need `metric`, because η
    times λ_1 of the plain Hessian says nothing about their stability.

    The factor b is limited too, so that steps in the bulk stay stable. The limit uses
    λ, an upper bound on the eigenvalues in the bulk: the smallest |λ_i| found or, if
    larger, the largest eigenvalue that an `adaptive` solver dropped. If b·η·λ exceeds
    the threshold, b is lowered until it does not, but never below 1.

    Put `optax.MultiSteps` around `accelerated`. As `inner`, it would advance its own
    schedule once per emitted step, but the schedule `learning_rate` at every call. Give
    `optax.inject_hyperparams` a function that builds `inner` and `accelerated` from one
    rate. Around `accelerated` alone, it changes the η above, but not the one of
    `inner`.

    Args:
      inner: the optimizer, with its learning rate.
      learning_rate: the rate η of `inner` again, to compare η·λ_1 with the threshold:
        a number at least 0, or a schedule of the step.
      rank: number of leading eigenvectors k.
      dominant_scale: the factor a, at least 0.
      bulk_scale: the factor b, at least 0.
      threshold: the largest max(a, 1)·η·λ_1 of a scaled step. Steps of SGD on the full
        batch are unstable from 2 on, those with momentum β from 2 (1 + β) on.
      tol: steps are scaled only if every residual is at most `tol` · λ_1.
      surge: above 1; how far the norm of the gradient may exceed its running average.
        The norm is that of all incoming updates. Put gradient clipping inside `inner`:
        before `accelerated`, it hides surges.
      metric: a function of the state of `inner` that returns its preconditioner, such
        as `bulk_sgd.adam_preconditioner` or `muon_preconditioner`. With it, the
        subspace belongs to the preconditioned Hessian. With
        `optax.inject_hyperparams`, list `metric` in `static_args`, and the
        arguments that the docstring of `scale_by_subspace` tells you to list.
      solver: called at every step to update the subspace; by default
        `bulk_sgd.streaming(factors=8, every=16, gain=0.4)`. It must keep eigenpairs of
        the whole curvature, not of blocks.
      curvature: as in `scale_by_subspace`.
      switch: the step from which the solver takes products and the scales may act, or
        a `Switch`. Let a warm-up of the learning rate end first: in `docs/gallery.md`,
        runs that switch at step 0, within the warm-up, are less reliable.
      mask: selects parameters; the others take the steps of `inner`.
      sharding: how devices share the parameters.
      seed: for the solver's random directions.

    Returns:
      An optimizer with an `AcceleratedState`.

    Raises:
      ValueError: if an argument is out of its range, or as in `scale_by_subspace`.
      TypeError: if neither `value_fn` nor `matvec` is given.

    Example:
      >>> import jax, jax.numpy as jnp, optax, bulk_sgd
      >>> rate = optax.cosine_decay_schedule(0.5, 300)
      >>> tx = bulk_sgd.accelerated(optax.sgd(rate), rate, rank=1, switch=0)
      >>> loss = lambda x: x[0] ** 2 + 0.01 * x[1] ** 2
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params,
      ...                                value_fn=loss)
      ...     return optax.apply_updates(params, updates), state
      >>> params = jnp.array([1.0, 1.0])
      >>> state = tx.init(params)
      >>> for _ in range(300):
      ...     params, state = step(params, state)
      >>> print(state.scaled, params.round(2))  # SGD alone ends at (0, 0.22)
      True [0.   0.05]
    """
    _check(
        inner, learning_rate, threshold, tol, surge, metric, dominant_scale, bulk_scale
    )
    inner = optax.with_extra_args_support(inner)
    solver = streaming(factors=8, every=16, gain=0.4) if solver is None else solver
    check_solver(solver, eigenpairs=True, whole=True)
    options = transform.checked(
        rank, solver=solver, curvature=curvature, switch=switch, mask=mask,
        sharding=sharding, seed=seed,
    )  # fmt: skip
    guard = Guard(dominant_scale, bulk_scale, threshold, tol, solver.sweeps, surge)
    watch = Watch(_UNKNOWN)

    def init(params):
        return AcceleratedState(
            inner_state=inner.init(params),
            projection=transform.init(options, params),
            memory=Memory.blank(),
            scaled=jnp.zeros((), bool),
        )

    def update(updates, state, params=None, **arguments):
        gradient = updates
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **arguments
        )
        if metric is not None:
            arguments["preconditioner"] = functions.call("metric", metric, inner_state)
        before = state.projection
        schedule = callable(learning_rate)
        rate = learning_rate(before.count) if schedule else learning_rate
        flags = {}

        def choose(after):
            chosen = guard.scales(before, after, rate, gradient, state.memory)
            factors, flags["memory"], flags["scaled"] = chosen
            return factors

        updates, projection = transform.advance(
            options, choose, watch, updates, before, params, **arguments
        )
        flags["scaled"] &= projection.switched
        return updates, AcceleratedState(inner_state, projection, **flags)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    inner, learning_rate, threshold, tol, surge, metric, dominant_scale, bulk_scale
):
    """Raises unless the arguments of `accelerated` are in their ranges."""
    if not isinstance(inner, optax.GradientTransformation):
        example = "such as optax.sgd(0.1)."
        problem = f"is {inner!r}; it must be an optax optimizer, {example}"
        raise checks.ArgumentError("inner", problem)
    if callable(learning_rate):
        scales.check("learning_rate", learning_rate)
    else:
        checks.at_least("learning_rate", learning_rate, 0)
    checks.at_least("threshold", threshold, 0, above=True)
    checks.at_least("tol", tol, 0, above=True)
    checks.at_least("surge", surge, 1, above=True)
    if metric is not None:
        functions.check("metric", metric, "inner_state")
    checks.at_least("dominant_scale", dominant_scale, 0)
    checks.at_least("bulk_scale", bulk_scale, 0)
