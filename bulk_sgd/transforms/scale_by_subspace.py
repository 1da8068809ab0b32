"""Optax transforms that scale the dominant and the bulk part of an update.

All of them are one transform, u ← a·P u + b·(u − P u), with P the projector onto the
dominant subspace of the curvature of `value_fn` at the current parameters. After an
inner optimizer it acts on that optimizer's update, before it on the gradient.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks
from bulk_sgd.curvature import masking, preconditioning
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.branches import any_lane, own_lane
from bulk_sgd.linalg.layout import place_rows
from bulk_sgd.solvers import subspace
from bulk_sgd.solvers.lanczos import lanczos
from bulk_sgd.solvers.subspace import Solver, Subspace
from bulk_sgd.transforms.switch import Switch
from bulk_sgd.transforms.value_fn import bind


class ScaleBySubspaceState(NamedTuple):
    """State of `scale_by_subspace`; read fields with `optax.tree_utils.tree_get`.

    Attributes:
      count: int32, steps taken.
      subspace: the `Subspace` in use: `eigenvalues`, `eigenvectors`, `residuals`,
        `converged` and `num_matvecs` of the last accepted solve.
      solver_state: the solver's own state.
      alignment: χ_k of the last incoming update, between 0 and 1; 0 before the first
        refresh.
      alignment_average: its exponential moving average, which `Switch` looks at.
      switched: bool, whether the scales are applied.
      switch_count: int32, step at which they first were, −1 before.
      total_matvecs: int32, curvature products spent so far.
      refreshes: int32, solves attempted so far.
      failed_refreshes: int32, those of them that did not converge or gave a number
        that is not finite, after which the previous subspace stayed.
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


def scale_by_subspace(
    rank: int,
    dominant_scale: optax.ScalarOrSchedule | Callable = 1.0,
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

    The update is u ← a·P u + b·(u − P u), computed as b·u + U ((a − b) Uᵀ u), which
    returns u bit for bit at a = b = 1. P is refreshed inside the step under
    `lax.cond`; between refreshes it is stale. Under `vmap` all lanes share one
    predicate, so that a step without refresh costs no matvec.

    `update` takes the keyword argument `value_fn`, a scalar function of the params
    (an `Objective` for `curvature="gauss_newton"`): the loss whose curvature counts,
    in the paper the one of the full training set. Further keyword arguments that
    `value_fn` names are passed on to it, as in optax line searches: arrays and numbers
    as data; flags, strings and functions as they are.

    `optax.inject_hyperparams` takes every function for a schedule of the step. Under it
    name those that are none in `static_args`, along with what fixes shapes: of `rank`,
    `dominant_scale` as a filter, and `curvature`, `mask` and `sharding` as functions.

    With the keyword argument `preconditioner` of `update`, a positive pytree like the
    params such as `bulk_sgd.adam_preconditioner` returns, the subspace is that of
    P^{−½} H P^{−½}, and what is projected is P^½ u, in the coordinates of its
    eigenvectors: u ← b·u + P^{−½} U ((a − b) Uᵀ P^½ u). Meant for updates, not for
    gradients; the alignment is that of P^½ u. A basis that is older than P, of a solver
    with a memory or with `refresh_every` above 1, is one of the coordinates of its own
    time: it errs by how much P has changed since, which is least once v̂ is settled.

    Args:
      rank: number of leading eigenvectors k, from 1 to the number of (masked)
        parameters. Static.
      dominant_scale: the factor a: a number, a schedule of the step, or, if its
        parameter is named `eigenvalues`, a spectral filter that maps the `(k,)`
        eigenvalues to `(k,)` factors.
      bulk_scale: the factor b: a number or a schedule of the step.
      refresh_every: steps between refreshes, counted from the first one needed.
      solver: how the subspace is found, by default `bulk_sgd.lanczos()`.
      curvature: "hessian", "gauss_newton", "functional_hessian", or a function
        `(value_fn, params) -> matvec`, such as `functools.partial(bulk_sgd.hessian,
        mode="finite_differences")`.
      switch: a step or a `Switch` from which on the scales are applied.
      mask: pytree of bools like the params (or a prefix of it), or a function of the
        params that returns one. The subspace is that of the curvature block of the
        selected parameters; updates of the others pass through unchanged. Use it
        instead of `optax.masked`, which hides the parameters that `value_fn` needs.
      sharding: for parameters sharded over devices, their `NamedSharding`s: a pytree
        like the params (or a prefix of it), or a function of the params that returns
        one. Constrains the basis and all vectors of a solve to that layout, which XLA
        otherwise need not keep.
      seed: seed of the solver's random directions.

    Returns:
      A transform whose state is a `ScaleBySubspaceState`.

    Raises:
      ValueError: at construction, `init` or the first `update`, if an argument is out
        of its range, params are missing or hidden by `optax.masked`, or the
        preconditioner is not like them.
      TypeError: if `value_fn` is missing, is not scalar, or is not an `Objective`
        where one is needed; or if a solver, a schedule or a filter returns something
        of another shape.

    References:
      Zakarin and Singh, *Accelerating Neural Network Training Along Sharp and Flat
      Directions*, arXiv 2505.11972, 2025.

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
    checks.integer("rank", rank, 1)
    checks.scale("dominant_scale", dominant_scale, filters=True)
    checks.scale("bulk_scale", bulk_scale)
    checks.integer("refresh_every", refresh_every, 1, static=False)
    checks.integer("seed", seed, 0, static=False)
    solver = lanczos() if solver is None else solver
    subspace.check_solver(solver)
    if not callable(curvature):
        checks.one_of("curvature", curvature, CURVATURES)
        curvature = CURVATURES[curvature]
    if not isinstance(switch, Switch):
        switch = Switch(step=switch)
    # A switch by step alone needs no subspace before that step.
    first_needed = switch.first_needed
    always = all(isinstance(x, int) for x in (refresh_every, first_needed)) and (
        (refresh_every, first_needed) == (1, 0)
    )

    def init(params):
        masking.refuse_hidden(params)
        if jax.tree.leaves(params):  # none in what optax.tree_map_params passes
            params = masking.select(params, mask)
            checks.floating("params", params)
            checks.integer(
                "rank", rank, 1, basis.size(params), "the number of (masked) parameters"
            )
        dtype = basis.working_dtype(params)
        return ScaleBySubspaceState(
            count=jnp.zeros((), jnp.int32),
            subspace=subspace.empty(params, rank),
            solver_state=solver.init(params, rank),
            alignment=jnp.zeros((), dtype),
            alignment_average=jnp.zeros((), dtype),
            switched=jnp.zeros((), bool),
            switch_count=jnp.full((), -1, jnp.int32),
            total_matvecs=jnp.zeros((), jnp.int32),
            refreshes=jnp.zeros((), jnp.int32),
            failed_refreshes=jnp.zeros((), jnp.int32),
        )

    def update(
        updates, state, params=None, *, value_fn=None, preconditioner=None, **extra_args
    ):
        if params is None:
            raise ValueError(
                "update of a bulk_sgd transform needs params: "
                "tx.update(grads, state, params, value_fn=loss)."
            )
        masking.refuse_hidden(params)
        if not jax.tree.leaves(params):
            raise ValueError("params has no arrays; it must have at least one.")
        value_fn = bind(value_fn, extra_args)
        flags = masking.resolve(mask, params)
        selected = masking.select(updates, flags)
        layout = _layout(sharding, params, flags)
        dtype = state.alignment.dtype
        incoming = jax.tree.map(lambda x: x.astype(dtype), selected)
        scale = None
        if preconditioner is not None:
            _check_like(preconditioner, updates)
            block_of_it = masking.select(preconditioner, flags)
            scale = preconditioning.root(block_of_it)
            incoming = jax.tree.map(jnp.multiply, scale, incoming)

        age = state.count - first_needed
        due = (age >= 0) & (age % refresh_every == 0)

        def refresh():
            block_fn, block = masking.restrict(value_fn, params, flags)
            key = jax.random.fold_in(jax.random.key(seed), state.count)
            before = state.subspace, state.solver_state
            matvec = curvature(block_fn, block)
            if scale is not None:
                matvec = preconditioning.preconditioned(matvec, block_of_it)
            matvec = sharded(matvec, layout)
            returned = solver.solve(matvec, *before, incoming, key)
            subspace.check_solution(returned, *before)
            found, known = returned
            usable = found.converged & _all_finite(found)
            kept = basis.where(due & usable, found, state.subspace)
            rows = found.eigenvectors
            if not (always and solver.guarded):  # no select between two bases there
                accepted = own_lane(due) if solver.guarded else due & usable
                old = state.subspace.eigenvectors, state.solver_state
                rows, known = basis.where(accepted, (rows, known), old)
            kept = kept._replace(eigenvectors=rows)
            return state._replace(
                subspace=kept,
                solver_state=known,
                total_matvecs=state.total_matvecs + due * found.num_matvecs,
                refreshes=state.refreshes + due,
                failed_refreshes=state.failed_refreshes + (due & ~usable),
            )

        # Without a conditional XLA can share work between the step and the refresh.
        if always:
            state = refresh()
        else:
            state = jax.lax.cond(any_lane(due), refresh, lambda: state)
        rows = place_rows(state.subspace.eigenvectors, layout)
        state = state._replace(subspace=state.subspace._replace(eigenvectors=rows))

        coefficients = state.subspace.coefficients(incoming)
        alignment = subspace.alignment(coefficients, incoming)
        average = switch.decay * state.alignment_average
        average = (average + (1 - switch.decay) * alignment).astype(alignment.dtype)
        average = jnp.where(jnp.isfinite(alignment), average, state.alignment_average)
        switched = state.switched | switch.acts(state.count, average)

        bulk = _factors("bulk_scale", bulk_scale, state)
        dominant = _factors("dominant_scale", dominant_scale, state)
        # Zeros stay zeros whatever they are multiplied with: a filter may be infinite
        # at the eigenvalue 0 of a missing direction, and an update that is not finite
        # must not spread where a = b.
        factors = dominant - bulk
        inert = (factors == 0) | (coefficients == 0)
        weights = jnp.where(inert, 0, factors * coefficients)
        correction = basis.combine(weights, state.subspace.eigenvectors)
        if scale is not None:
            correction = jax.tree.map(jnp.divide, correction, scale)

        def scaled(u, c):
            wide = bulk * u.astype(c.dtype)
            wide = jnp.where(c == 0, wide, wide + c)  # −0 + 0 would lose its sign
            return jnp.where(switched, wide.astype(u.dtype), u)

        scaled_updates = jax.tree.map(scaled, selected, correction)
        new_state = state._replace(
            count=optax.safe_increment(state.count),
            alignment=alignment,
            alignment_average=average,
            switched=switched,
            switch_count=jnp.where(
                switched & ~state.switched, state.count, state.switch_count
            ),
        )
        return masking.merge(scaled_updates, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def takes_options(fn):
    """Shows the keyword arguments of `scale_by_subspace` in place of `**options`.

    `optax.inject_hyperparams` reads the signature, and cannot pass `**options` on.
    """
    signature = inspect.signature(fn)
    options = inspect.signature(scale_by_subspace).parameters.values()
    parameters = [*signature.parameters.values()][:-1]
    parameters += [p for p in options if p.kind is inspect.Parameter.KEYWORD_ONLY]
    fn.__signature__ = signature.replace(parameters=parameters)
    return fn


@takes_options
def project_bulk(rank: int, **options) -> optax.GradientTransformationExtraArgs:
    """Removes the dominant part of the updates: u ← u − P u, (a, b) = (0, 1).

    Args:
      rank: number of leading eigenvectors k.
      **options: keyword arguments of `scale_by_subspace`.

    Returns:
      A transform whose state is a `ScaleBySubspaceState`.

    Example:
      >>> import optax, bulk_sgd
      >>> tx = optax.chain(optax.adam(1e-3), bulk_sgd.project_bulk(rank=10))
    """
    return scale_by_subspace(rank, 0.0, 1.0, **options)


@takes_options
def project_dominant(rank: int, **options) -> optax.GradientTransformationExtraArgs:
    """Keeps the dominant part of the updates alone: u ← P u, (a, b) = (1, 0).

    Args:
      rank: number of leading eigenvectors k.
      **options: keyword arguments of `scale_by_subspace`.

    Returns:
      A transform whose state is a `ScaleBySubspaceState`.

    Example:
      >>> import optax, bulk_sgd
      >>> tx = optax.chain(optax.sgd(0.01), bulk_sgd.project_dominant(rank=10))
    """
    return scale_by_subspace(rank, 1.0, 0.0, **options)


def _factors(name, scale, state: ScaleBySubspaceState):
    if not callable(scale):
        return scale
    filters = checks.is_filter(scale)
    at = state.subspace.eigenvalues if filters else state.count
    factors, shape = scale(at), jnp.shape(at)
    if jnp.shape(factors) not in ((), shape):
        raise TypeError(
            f"{name} returned the shape {jnp.shape(factors)}; it must return "
            + (f"one factor per eigenvalue, {shape}." if filters else "a scalar.")
        )
    return factors


def _check_like(preconditioner, updates):
    def form(tree):  # a node of the user's need not know what equals it
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    if form(preconditioner) != form(updates):
        shapes, wanted = (jax.tree.map(jnp.shape, x) for x in (preconditioner, updates))
        raise ValueError(
            f"preconditioner has the shapes {shapes}; it must be like the params, "
            f"{wanted}."
        )


def _layout(sharding, params, flags):
    """The shardings of the selected parameters, None where nothing was asked for."""
    if sharding is None:
        return None
    sharding = masking.resolve(sharding, params)
    return masking.select(jax.tree.broadcast(sharding, params), flags)


def _all_finite(found: Subspace):
    # A vector that is not finite shows in its eigenvalue or residual.
    return jnp.all(jnp.isfinite(found.eigenvalues) & jnp.isfinite(found.residuals))
