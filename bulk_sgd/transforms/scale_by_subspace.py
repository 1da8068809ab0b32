"""The optax transform that scales the dominant and the bulk part of an update.

Chain it after an optimizer to act on the optimizer's update, or before it to act on the
gradient.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks, functions
from bulk_sgd.curvature import masking
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.lanczos import lanczos
from bulk_sgd.solvers.solver import Solver, check_solver
from bulk_sgd.solvers.subspace import Subspace, empty
from bulk_sgd.transforms import scales, step
from bulk_sgd.transforms.eager import Watch
from bulk_sgd.transforms.scales import spectral_filter
from bulk_sgd.transforms.switch import Switch
from bulk_sgd.transforms.value_fn import bind


class ScaleBySubspaceState(NamedTuple):
    """State of `scale_by_subspace`; read fields with `optax.tree_utils.tree_get`.

    Attributes:
      count: int32, steps taken.
      subspace: the `Subspace` in use: `eigenvalues`, `eigenvectors`, `residuals`,
        `converged` and `num_matvecs` of the last solve that succeeded.
      solver_state: the solver's own state.
      alignment: ‖P u‖ / ‖u‖ of the last incoming update u, between 0 and 1; 0 until a
        refresh succeeds.
      alignment_average: exponential moving average of `alignment`, which `Switch`
        watches.
      switched: bool, whether the scales are applied.
      switch_count: int32, the first step with the scales applied; −1 until then.
      total_matvecs: int32, curvature products spent so far.
      refreshes: int32, solves attempted so far.
      failed_refreshes: int32, solves that did not converge or returned a number that is
        not finite. After each of them the previous subspace stays in use. Until a
        refresh succeeds, the subspace is empty and `bulk_scale` scales the whole
        update. Outside of `jit`, a warning says so.
      useful_matvecs: int32, products of the solves that succeeded, without the `probes`
        of the solver.
    """

    count: jax.Array
    subspace: Subspace
    solver_state: Any
    alignment: jax.Array
    alignment_average: jax.Array
    switched: jax.Array
    switch_count: jax.Array
    total_matvecs: jax.Array
    refreshes: jax.Array
    failed_refreshes: jax.Array
    useful_matvecs: jax.Array


def scale_by_subspace(
    rank: int,
    dominant_scale: optax.ScalarOrSchedule | spectral_filter = 1.0,
    bulk_scale: optax.ScalarOrSchedule = 1.0,
    *,
    refresh_every: int = 1,
    solver: Solver | None = None,
    curvature: str | Callable = "hessian",
    switch: int | Switch = 0,
    mask: Any = None,
    sharding: Any = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Scales the dominant and the bulk part of the incoming updates.

    An update u becomes a·P u + b·(u − P u). The columns of U = [u_1 … u_k] are the
    leading eigenvectors of the curvature, and P = U Uᵀ. The update is computed as
    b·u + U ((a − b) Uᵀ u), so that a = b = 1 returns u bit for bit. P is refreshed
    inside the step, under `lax.cond`, and does not change between refreshes. Under
    `vmap` a step takes matvecs only if at least one lane refreshes.

    `update` takes the keyword argument `value_fn`, the loss that defines the curvature:
    a scalar function of the params (an `Objective` for "gauss_newton" and
    "functional_hessian"). In the paper (Zakarin and Singh, arXiv 2505.11972, 2025) it
    is the loss of the full training set. Like optax line searches, `update` passes
    further keyword arguments on to `value_fn` if `value_fn` names them. Arrays and
    numbers are dynamic; flags, strings and functions are static.

    `update` also takes `matvec`, a function from a vector to its product with the
    curvature at the params, as from `bulk_sgd.value_grad_and_matvec`. If given,
    `matvec` replaces `value_fn` and `curvature`.

    `update` also takes `preconditioner`, a positive matrix D, as a pytree like the
    params. Each leaf is either an array, which is a diagonal, or a `Kronecker`.
    `adam_preconditioner` and `muon_preconditioner` return D; their docstrings call it
    P. The columns of U are eigenvectors of D^{−½} H D^{−½}, and the projection acts on
    D^½ u: u ← b·u + D^{−½} U ((a − b) Uᵀ D^½ u). The alignment, too, is measured on D^½
    u. With a preconditioner, place the transform after the optimizer, so that it acts
    on updates and not on gradients. If the solver has a memory, or if `refresh_every`
    is above 1, the basis belongs to an older D, so P is inexact. The error grows as D
    changes, and is small once Adam's average of squares has settled.

    `optax.inject_hyperparams` treats every function as a schedule of the step. List in
    its `static_args` each function that is not a schedule (`curvature`, `mask`,
    `sharding`), and `rank`, which fixes array shapes. You need not list a
    `spectral_filter`.

    Args:
      rank: number of leading eigenvectors k, from 1 to the number of parameters, or of
        those that `mask` selects. Static.
      dominant_scale: the factor a: a number, a schedule of the step, or a
        `bulk_sgd.spectral_filter` of the eigenvalues. A plain function is a schedule.
      bulk_scale: the factor b: a number or a schedule of the step.
      refresh_every: steps from one refresh to the next, counted from the first step
        that needs the subspace.
      solver: finds the subspace; `bulk_sgd.lanczos()` by default.
      curvature: "hessian", "gauss_newton", "functional_hessian", or a function
        `(value_fn, params) -> matvec`, such as `functools.partial(bulk_sgd.hessian,
        mode="finite_differences")`.
      switch: the step from which the scales are applied, or a `Switch`.
      mask: pytree of bools like the params (or a prefix of it), or a function of the
        params that returns one. Only the selected parameters define the curvature, as a
        diagonal block of H; updates of the other parameters pass through unchanged. Use
        it instead of `optax.masked`, which hides the parameters that `value_fn` needs.
      sharding: for parameters sharded over devices, their `NamedSharding`s: a pytree
        like the params (or a prefix of it), or a function of the params that returns
        one. The basis and all vectors of a solve keep that layout.
      seed: seed of the solver's random directions.

    Returns:
      A transform with a `ScaleBySubspaceState`.

    Raises:
      ValueError: at construction, `init` or the first `update`, if an argument is out
        of its range, if params are missing or hidden by `optax.masked`, or if the
        preconditioner is not like the params.
      TypeError: if `value_fn` is missing, is not scalar, or is not an `Objective` when
        one is needed; if a solver, a schedule or a filter returns a wrong shape.

    Example:
      >>> import jax, jax.numpy as jnp, optax, bulk_sgd
      >>> loss = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2  # sharp, flat
      >>> tx = optax.chain(
      ...     optax.sgd(0.1),
      ...     bulk_sgd.scale_by_subspace(rank=1, dominant_scale=0.1, bulk_scale=2.0))
      >>> params = jnp.array([1.0, 1.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jax.grad(loss)(params), state, params,
      ...                            value_fn=loss)
      >>> print(updates.round(3))  # SGD would take (-10, -0.1)
      [-1.  -0.2]
      >>> print(optax.tree_utils.tree_get(state, "eigenvalues").round())
      [100.]
    """
    options = checked(
        rank, dominant_scale, bulk_scale, refresh_every=refresh_every, solver=solver,
        curvature=curvature, switch=switch, mask=mask, sharding=sharding, seed=seed,
    )  # fmt: skip
    watch = Watch()

    def update(updates, state, params=None, **arguments):
        given = updates, state, params
        return advance(options, options.scales, watch, *given, **arguments)

    return optax.GradientTransformationExtraArgs(
        functools.partial(init, options), update
    )


def checked(
    rank,
    dominant_scale=1.0,
    bulk_scale=1.0,
    *,
    refresh_every=1,
    solver=None,
    curvature="hessian",
    switch=0,
    mask=None,
    sharding=None,
    seed=0,
) -> step.Options:
    """Checks the arguments of `scale_by_subspace`; returns them as `step.Options`."""
    checks.integer("rank", rank, 1)
    scales.check("dominant_scale", dominant_scale, rank)
    scales.check("bulk_scale", bulk_scale)
    checks.integer("refresh_every", refresh_every, 1, static=False)
    checks.integer("seed", seed, 0, static=False)
    solver = lanczos() if solver is None else solver
    check_solver(solver)
    if not callable(curvature):
        checks.one_of("curvature", curvature, CURVATURES)
        curvature = CURVATURES[curvature]
    functions.check("curvature", curvature, "value_fn", "params")
    if not isinstance(switch, Switch):
        switch = Switch(step=switch)
    return step.Options(
        rank=rank,
        dominant_scale=dominant_scale,
        bulk_scale=bulk_scale,
        refresh_every=refresh_every,
        solver=solver,
        curvature=curvature,
        switch=switch,
        mask=mask,
        sharding=sharding,
        seed=seed,
    )


def init(options: step.Options, params) -> ScaleBySubspaceState:
    """The state before the first step."""
    masking.refuse_hidden(params)
    rank = options.rank
    if jax.tree.leaves(params):  # optax.tree_map_params passes a tree without leaves
        options.layout(params)
        params = masking.select(params, options.mask)
        checks.floating("params", params)
        size = basis.size(params)
        checks.integer("rank", rank, 1, size, "the number of (masked) parameters")
    dtype = basis.working_dtype(params)
    return ScaleBySubspaceState(
        count=jnp.zeros((), jnp.int32),
        subspace=empty(params, rank, options.solver.zeros),
        solver_state=options.solver.init(params, rank),
        alignment=jnp.zeros((), dtype),
        alignment_average=jnp.zeros((), dtype),
        switched=jnp.zeros((), bool),
        switch_count=jnp.full((), -1, jnp.int32),
        total_matvecs=jnp.zeros((), jnp.int32),
        refreshes=jnp.zeros((), jnp.int32),
        failed_refreshes=jnp.zeros((), jnp.int32),
        useful_matvecs=jnp.zeros((), jnp.int32),
    )


def advance(
    options: step.Options,
    choose: Callable,
    watch: Watch,
    updates,
    state,
    params,
    *,
    value_fn=None,
    matvec=None,
    preconditioner=None,
    **extra_args,
):
    """Takes one step; `choose` returns its scales (a, b) from the refreshed state."""
    _check_params(params)
    _check_state(state, options.rank)
    if matvec is None:
        value_fn = bind(value_fn, extra_args)
        watch.loss(value_fn, params)
    else:
        functions.check("matvec", matvec, "vector")
    curved = value_fn, matvec, preconditioner
    selected = step.select(options, updates, state, params, *curved)
    state = step.refresh(options, state, selected)
    watch.subspace(state)
    factors = choose(state)
    scaled, state = step.scale(options.switch, factors, state, selected)
    return masking.merge(scaled, updates), state


def _check_params(params):
    if params is None:
        raise ValueError(
            "update of a bulk_sgd transform needs params: "
            "tx.update(grads, state, params, value_fn=loss)."
        )
    masking.refuse_hidden(params)


def _check_state(state, rank):
    known = isinstance(state, ScaleBySubspaceState) and state.subspace.rank
    if known != rank:
        got = f"of rank {known}" if known else f"of type {type(state).__name__}"
        problem = f"is {got}; it must be the state that init returned, of rank {rank}."
        raise checks.ArgumentError("state", problem)
