"""One step of `scale_by_subspace`: select, refresh, scale."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks, functions
from bulk_sgd.curvature import blocks, masking, preconditioning, replicas
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.linalg import basis, branches
from bulk_sgd.linalg.layout import check_layout, place_rows
from bulk_sgd.solvers import solver as solver_lib
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import alignment
from bulk_sgd.transforms import scales
from bulk_sgd.transforms.switch import Switch


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `scale_by_subspace`, checked."""

    rank: int
    dominant_scale: Any
    bulk_scale: Any
    refresh_every: Any
    solver: Solver
    curvature: Callable
    switch: Switch
    mask: Any
    sharding: Any
    seed: Any

    def scales(self, state):
        """The scales (a, b) after a refresh; a may have one number per vector."""
        dominant = scales.factors("dominant_scale", self.dominant_scale, state)
        return dominant, scales.factors("bulk_scale", self.bulk_scale, state)

    def layout(self, params):
        """The `NamedSharding`s of all parameters, or None."""
        if self.sharding is None:
            return None
        return check_layout(masking.resolve(self.sharding, params, "sharding"), params)

    def due(self, count):
        """Whether step `count` refreshes the subspace: a bool scalar, or True."""
        first = self.switch.first_needed
        static = isinstance(self.refresh_every, int) and isinstance(first, int)
        if static and (self.refresh_every, first) == (1, 0):
            return True
        age = count - first
        return (age >= 0) & (age % self.refresh_every == 0)


class Selected(NamedTuple):
    """The arguments of an update, for the selected parameters only."""

    updates: Any  # u
    vector: Any  # u in float32 or float64, or D^½ u with a preconditioner D
    value_fn: Callable | None  # of `params`
    params: Any
    matvec: Callable | None  # instead of products with the curvature of `value_fn`
    preconditioner: Any  # D, or None
    root: Any  # D^½, or None
    layout: Any  # the `NamedSharding`s of the parameters, or None


def select(
    options: Options, updates, state, params, value_fn, matvec, preconditioner
) -> Selected:
    """What the mask selects, in the coordinates of the eigenvectors."""
    flags = masking.resolve(options.mask, params, "mask")
    selected = masking.select(updates, flags)
    _check_trees(options, selected, masking.select(params, flags), state)
    layout = options.layout(params)
    if layout is not None:
        layout = masking.select(layout, flags)
    vector = jax.tree.map(lambda x: x.astype(state.alignment.dtype), selected)
    if preconditioner is not None:
        shapes = preconditioning.shapes(preconditioner)
        checks.like("preconditioner", shapes, updates, "the params")
        is_leaf = preconditioning.is_kronecker
        preconditioner = masking.select(preconditioner, flags, is_leaf)
    root = preconditioning.root(preconditioner)
    vector = preconditioning.multiply(root, vector)
    restricted = masking.restrict(value_fn, params, flags)
    if matvec is not None and flags is not None:
        matvec = blocks.diagonal_block(matvec, params, flags)
    curved = *restricted, matvec, preconditioner, root
    return Selected(selected, vector, *curved, layout)


def refresh(options: Options, state, selected: Selected):
    """Returns the state, with a new subspace if a refresh is due."""
    due = options.due(state.count)

    def refresh():
        matvec = selected.matvec
        if matvec is None:
            curved = selected.value_fn, selected.params
            matvec = functions.call("curvature", options.curvature, *curved)
            functions.check("the value of curvature", matvec, "vector")
        matvec = replicas.agreeing(matvec)
        matvec = preconditioning.preconditioned(matvec, selected.preconditioner)
        matvec = sharded(matvec, selected.layout)
        key = jax.random.fold_in(jax.random.key(options.seed), state.count)
        known, solver = (state.subspace, state.solver_state), options.solver
        found = solver_lib.refresh(solver, due, matvec, *known, selected.vector, key)
        useful = jnp.maximum(found.num_matvecs - solver.probes, 0)
        return state._replace(
            subspace=found.subspace,
            solver_state=found.state,
            total_matvecs=state.total_matvecs + due * found.num_matvecs,
            refreshes=state.refreshes + due,
            failed_refreshes=state.failed_refreshes + (due & ~found.usable),
            useful_matvecs=state.useful_matvecs + (due & found.usable) * useful,
        )

    state = branches.cond(due, refresh, lambda: state)
    rows = place_rows(state.subspace.eigenvectors, selected.layout)
    return state._replace(subspace=state.subspace._replace(eigenvectors=rows))


def scale(switch: Switch, factors, state, selected: Selected):
    """Returns the updates scaled by factors (a, b), and the state after the step."""
    rows = state.subspace.eigenvectors
    coefficients = basis.inner(rows, selected.vector)
    after = _watch(switch, state, alignment(coefficients, selected.vector))

    dominant, bulk = factors
    # Zeros stay zeros whatever multiplies them: a filter may be infinite at the
    # eigenvalue 0 of a missing direction, and where a = b an update that is not finite
    # must not spread.
    excess = dominant - bulk
    inert = (excess == 0) | (coefficients == 0)
    weights = jnp.where(inert, 0, excess * coefficients)
    correction = basis.combine(weights, rows)
    correction = preconditioning.divide(selected.root, correction)
    # Scales of 1 leave u as it is, even where the preconditioner is zero or NaN.
    acts = after.switched & (jnp.any(dominant != 1) | (bulk != 1))

    def scaled(u, c):
        wide = bulk * u.astype(c.dtype)
        wide = jnp.where(c == 0, wide, wide + c)  # −0 + 0 would lose its sign
        return jnp.where(acts, wide.astype(u.dtype), u)

    return jax.tree.map(scaled, selected.updates, correction), after


def _watch(switch: Switch, state, alignment):
    """The state after the step, with the switch thrown if it is time."""
    average = switch.averaged(state.alignment_average, alignment)
    switched = state.switched | switch.acts(state.count, average)
    first = switched & ~state.switched
    return state._replace(
        count=optax.safe_increment(state.count),
        alignment=alignment,
        alignment_average=average,
        switched=switched,
        switch_count=jnp.where(first, state.count, state.switch_count),
    )


def _check_trees(options, updates, params, state):
    """Raises ArgumentError unless the selected trees are like those at `init`."""
    checks.floating("params", params)
    checks.floating("updates", updates)
    before = basis.like(state.subspace.eigenvectors)
    checks.like("params", params, before, "the params at init")
    checks.like("updates", updates, params, "the params")
    now, then = basis.working_dtype(params), state.alignment.dtype
    if now != then:
        raise checks.ArgumentError(
            "params",
            f"computes in {now.name}; it must be in {then.name}, as the params at init",
        )
    begun = jax.eval_shape(lambda x: options.solver.init(x, options.rank), params)
    checks.like("solver_state of state", state.solver_state, begun, "that at init")
