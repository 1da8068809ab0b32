"""Whose curvature a transform follows, and the solver that it asks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    cross_entropy,
    dense,
    exact_solver,
    flat,
    mlp,
    objective,
    projector,
    rows,
    top,
)
from transform_runs import (
    CLOSE,
    LOSS,
    PARAMS,
    RANK,
    UPDATES,
    VALUES,
    P,
    assert_same,
    exact,
    first_update,
    history,
)

import bulk_sgd
from bulk_sgd.solvers.subspace import empty

pytestmark = pytest.mark.usefixtures("strict_ranks")


# Whose curvature.


def network(size=None, dtype=None):
    return objective(mlp(), cross_entropy, size, dtype)


CURVATURES = {
    "hessian": bulk_sgd.hessian,
    "gauss_newton": bulk_sgd.gauss_newton,
    "functional_hessian": bulk_sgd.functional_hessian,
}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("hessian", None),
        ("gauss_newton", None),
        ("functional_hessian", None),
        ("gauss_newton", 3),
    ],
)
def test_curvature_by_name_and_by_function(x64, kind, size):
    made, params = network(size)
    u = jax.tree.map(jnp.ones_like, params)
    matrix = dense(CURVATURES[kind](made, params), params)
    expected = top(matrix, RANK)[1] @ flat(u)
    curvature = kind if size is None else CURVATURES[kind]
    tx = exact(RANK, 1.0, 0.0, curvature=curvature)
    out, state = first_update(tx, u, params, made)
    # Gaps between the leading eigenvalues of this network are 0.01 of λ_1 or more.
    np.testing.assert_allclose(flat(out), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        state.subspace.eigenvalues, top(matrix, RANK)[0], rtol=0, atol=1e-13
    )


def test_custom_curvature_gets_value_fn_and_params():
    def fixed(value_fn, params):
        assert value_fn is LOSS
        weights = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1), params)
        weights = jax.tree.map(lambda w, p: w.reshape(p.shape), weights, params)
        return lambda v: jax.tree.map(jnp.multiply, weights, v)

    _, state = first_update(exact(RANK, curvature=fixed))
    np.testing.assert_allclose(state.subspace.eigenvalues, [6, 5, 4], rtol=1e-6)


HIDDEN = {"hidden": {"w": True, "b": True}, "out": {"w": False, "b": False}}
MASKS = {
    "full": HIDDEN,
    "prefix": {"hidden": True, "out": False},
    "function": lambda tree: {"hidden": True, "out": False},
    "partial": {"hidden": {"w": True, "b": False}, "out": {"w": False, "b": True}},
}


@pytest.mark.parametrize("mask", MASKS)
def test_mask_restricts_the_curvature_block_and_the_update(x64, mask):
    made, params = network(3 if mask == "full" else None)
    u = jax.tree.map(jnp.ones_like, params)
    leaves = HIDDEN if mask != "partial" else MASKS[mask]
    inside = flat(jax.tree.map(lambda f, p: jnp.full(p.shape, f), leaves, params)) > 0
    kind = "gauss_newton" if mask == "prefix" else "hessian"
    matrix = dense(CURVATURES[kind](made, params), params)
    block = matrix[np.ix_(inside, inside)]
    tx = exact(RANK, 0.0, 2.0, mask=MASKS[mask], curvature=kind)
    value_fn = (lambda params: made(params)) if mask == "function" else made
    out, state = first_update(tx, u, params, value_fn)

    assert_same(
        jax.tree.map(lambda f, x: None if f else x, leaves, out),
        jax.tree.map(lambda f, x: None if f else x, leaves, u),
    )
    v = flat(u)[inside]
    expected = 2 * (v - top(block, RANK)[1] @ v)
    np.testing.assert_allclose(flat(out)[inside], expected, rtol=0, atol=1e-11)
    vectors = state.subspace.eigenvectors
    assert (vectors["out"]["w"], vectors["hidden"]["w"].shape) == (None, (RANK, 3, 4))
    found = projector(rows(vectors))
    np.testing.assert_allclose(found, top(block, RANK)[1], rtol=0, atol=1e-11)
    # χ is that of the selected part alone.
    chi = np.linalg.norm(top(block, RANK)[1] @ v) / np.linalg.norm(v)
    np.testing.assert_allclose(state.alignment, chi, rtol=1e-10)


def test_mask_is_a_function_of_the_params_not_of_the_updates():
    params = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(4)}
    weights = jnp.arange(1.0, 5.0)
    loss = lambda p: (
        jnp.sum(p["half"].astype(jnp.float32) ** 2)
        + jnp.sum(weights * p["single"] ** 2)
    )
    single = lambda tree: jax.tree.map(lambda x: x.dtype == jnp.float32, tree)
    tx = exact(2, 0.0, 1.0, mask=single)
    u = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), params)
    out, state = first_update(tx, u, params, loss)
    np.testing.assert_allclose(state.subspace.eigenvalues, [8, 6], rtol=1e-6)
    assert state.subspace.eigenvectors["half"] is None
    np.testing.assert_allclose(out["half"], 1)
    np.testing.assert_allclose(out["single"], [1, 1, 0, 0], atol=1e-6)


def test_value_fn_gets_the_extra_arguments_that_it_names():
    def value_fn(params, factor, *, offset=0.0):
        return factor * LOSS(params) + offset

    tx = exact(RANK)
    update = lambda **extra: jax.jit(
        lambda: tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=value_fn, **extra)
    )()[1]
    state = update(factor=2.0, value=1.0, grad=UPDATES)
    np.testing.assert_allclose(state.subspace.eigenvalues, 2 * VALUES, rtol=1e-5)
    state = update(factor=3.0, offset=jnp.float32(1))
    np.testing.assert_allclose(state.subspace.eigenvalues, 3 * VALUES, rtol=1e-5)


def test_new_data_in_an_objective_need_no_new_program():
    tx = exact(RANK)
    made, params = network(dtype=jnp.float32)
    u = jax.tree.map(jnp.ones_like, params)
    step = jax.jit(lambda s, data: tx.update(u, s, params, value_fn=data)[1])
    first = step(tx.init(params), made)
    second = step(first, made.take(jnp.arange(7)[::-1] // 2))
    assert step._cache_size() == 1
    difference = second.subspace.eigenvalues - first.subspace.eigenvalues
    assert np.abs(difference).max() > 1e-3


# Solvers.


def test_solver_keeps_state_of_its_own_and_sees_everything():
    inner = exact_solver()
    gradients = []

    def solve(matvec, subspace, state, updates, key):
        gradients.append(jax.tree.structure(updates))
        found, _ = inner.solve(matvec, subspace, (), updates, key)
        previous = jnp.sum(subspace.eigenvalues)
        keys = jnp.roll(state["keys"], -1, 0).at[-1].set(jax.random.key_data(key))
        return found, {"calls": state["calls"] + 1, "last": previous, "keys": keys}

    def init(params, rank):
        assert rank == RANK
        assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
        keys = jnp.zeros((4, 2), jnp.uint32)
        return {"calls": jnp.zeros((), jnp.int32), "last": jnp.zeros(()), "keys": keys}

    tx = functools.partial(
        bulk_sgd.scale_by_subspace, RANK, solver=bulk_sgd.Solver(init, solve)
    )
    _, state = history(tx(refresh_every=2), 7)
    assert state.solver_state["calls"].tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert float(state.solver_state["last"][1]) == 0
    np.testing.assert_allclose(state.solver_state["last"][-1], VALUES.sum(), rtol=1e-5)
    assert gradients[0] == jax.tree.structure(UPDATES)
    keys = state.solver_state["keys"][-1].tolist()
    assert len({tuple(key) for key in keys}) == 4
    other = history(tx(refresh_every=2, seed=1), 7)[1].solver_state["keys"][-1].tolist()
    assert not {tuple(key) for key in keys} & {tuple(key) for key in other}


def test_warm_start_needs_fewer_matvecs():
    spent = []
    for warm_start in (True, False):
        solver = bulk_sgd.lanczos(tol=1e-2, warm_start=warm_start)
        _, state = history(bulk_sgd.scale_by_subspace(1, solver=solver), 6)
        assert not state.failed_refreshes.any()
        spent.append(int(state.total_matvecs[-1] - state.total_matvecs[0]))
    assert spent[0] < spent[1]


def bad_value_fn(params, poison):
    return LOSS(params) + poison * LOSS(params)


def test_hessian_that_is_not_finite_keeps_the_previous_subspace():
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.lanczos(tol=3e-6))

    @jax.jit
    def step(state, poison):
        extra = {"value_fn": bad_value_fn, "poison": poison}
        return tx.update(UPDATES, state, PARAMS, **extra)

    _, good = step(tx.init(PARAMS), 0.0)
    out, bad = step(good, jnp.nan)
    assert_same(bad.subspace, good.subspace)
    assert (int(bad.refreshes), int(bad.failed_refreshes)) == (2, 1)
    # What the failed attempt cost counts: the first product is enough to see it.
    assert int(bad.total_matvecs) == int(good.total_matvecs) + 1
    np.testing.assert_allclose(flat(out), flat(UPDATES) - P @ flat(UPDATES), **CLOSE)
    _, again = step(bad, 0.0)
    assert int(again.failed_refreshes) == 1
    assert int(again.total_matvecs) > int(bad.total_matvecs)


def test_refresh_that_does_not_converge_is_not_used():
    solver = bulk_sgd.lanczos(tol=0, max_matvecs=RANK)
    out, state = history(bulk_sgd.project_bulk(RANK, solver=solver), 3)
    assert_same(state.subspace.eigenvectors["b"], jnp.zeros((3, RANK)))
    assert state.failed_refreshes.tolist() == [1, 2, 3]
    assert state.total_matvecs.tolist() == [3, 6, 9]
    assert not state.subspace.converged.any()
    # Nothing is known to be dominant: the update passes.
    assert_same(jax.tree.map(lambda x: x[-1], out), UPDATES)


@pytest.mark.parametrize("field", ["eigenvalues", "residuals"])
def test_solution_with_a_number_that_is_not_finite_is_not_used(field):
    inner = exact_solver()

    def solve(matvec, subspace, state, updates, key):
        found, _ = inner.solve(matvec, subspace, (), updates, key)
        ruined = getattr(found, field).at[0].set(jnp.inf)
        return found._replace(**{field: ruined}), state + 1

    solver = bulk_sgd.Solver(lambda params, rank: jnp.zeros(()), solve)
    out, state = first_update(bulk_sgd.project_bulk(RANK, solver=solver))
    assert_same(state.subspace, empty(PARAMS, RANK))
    assert float(state.solver_state) == 0
    assert int(state.failed_refreshes) == 1
    assert_same(out, UPDATES)
