import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    count_equations,
    cross_entropy,
    dense,
    exact_solver,
    flat,
    mlp,
    objective,
    projector,
    quadratic,
    rows,
    symmetric,
    top,
)
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.subspace import empty

pytestmark = pytest.mark.usefixtures("strict_ranks")

tree_get = optax.tree_utils.tree_get

RANK = 3
EIGENVALUES = np.array([10, 6, 3, 1, 0.9, 0.5, 0.3, 0.2, 0, -1, -20])
MATRIX = symmetric(EIGENVALUES)
LOSS = quadratic(MATRIX)
VALUES, P = top(MATRIX, RANK)


def pytree(seed=0, dtype=None):
    """Eleven numbers: a scalar, a vector and a matrix."""
    rng = np.random.default_rng(seed)
    shapes = {"b": (), "v": (4,), "w": (2, 3)}
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


PARAMS = pytree(0, jnp.float32)
UPDATES = pytree(1, jnp.float32)
exact = functools.partial(bulk_sgd.scale_by_subspace, solver=exact_solver())


def first_update(tx, updates=UPDATES, params=PARAMS, value_fn=LOSS):
    """The first update of a transform, compiled, and the state after it."""
    update = lambda u, p: tx.update(u, tx.init(p), p, value_fn=value_fn)
    return jax.jit(update)(updates, params)


def history(tx, steps, updates=UPDATES, params=PARAMS, value_fn=LOSS, move=0.0):
    """Updates and states of some steps, stacked; params follow `move` times them."""

    def step(carry, _):
        params, state = carry
        out, state = tx.update(updates, state, params, value_fn=value_fn)
        params = jax.tree.map(lambda p, u: p + move * u, params, out)
        return (params, state), (out, state)

    run = lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]
    return jax.jit(run)(params)


def assert_same(actual, expected):
    """Equal bit for bit, in every leaf."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# float32 rounds to 6e-8; eleven terms of order 1 lose a few units, and eigh of a
# matrix of norm 20 loses ten in the eigenvectors.
CLOSE = {"rtol": 0, "atol": 1e-5}
# The same in float64, 1e-16.
EXACT = {"rtol": 0, "atol": 1e-13}


# The formula.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scales_of_one_return_the_updates_bit_for_bit(dtype):
    updates = pytree(1, dtype)
    out, state = first_update(exact(RANK), updates)
    assert_same(out, updates)
    # Not because there was no subspace.
    assert float(state.alignment) > 0.1


SCALES = [(0, 1), (1, 0), (1, 1), (0.3, 1), (1, 0.3), (0.3, 0.7), (-0.5, 2)]


def test_scales_act_on_both_parts_as_the_dense_projector_does(x64):
    params, updates = pytree(0), pytree(1)
    u = flat(updates)

    @jax.jit
    def scaled(a, b):
        tx = exact(RANK, a, b)
        return tx.update(updates, tx.init(params), params, value_fn=LOSS)[0]

    for a, b in SCALES:
        expected = a * (P @ u) + b * (u - P @ u)
        np.testing.assert_allclose(flat(scaled(a, b)), expected, **EXACT)


def test_default_solver_finds_the_same_subspace(x64):
    params, updates = pytree(0), pytree(1)
    solver = bulk_sgd.lanczos(tol=1e-12)
    tx = bulk_sgd.scale_by_subspace(RANK, 0.3, 2.0, solver=solver)
    out, state = first_update(tx, updates, params)
    u = flat(updates)
    # The tolerance over a gap of a tenth of λ_1, and some margin.
    bound = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(flat(out), 0.3 * P @ u + 2 * (u - P @ u), **bound)
    np.testing.assert_allclose(state.subspace.eigenvalues, VALUES, **bound)


def test_parts_add_up_and_projecting_twice_changes_nothing():
    dominant = bulk_sgd.project_dominant(RANK, solver=exact_solver())
    bulk = bulk_sgd.project_bulk(RANK, solver=exact_solver())

    def apply(*txs):
        tx = optax.chain(*txs)
        return tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=LOSS)[0]

    chains = [(dominant,), (bulk,), (dominant, dominant), (bulk, dominant)]
    inside, outside, twice, nothing = jax.jit(lambda: [apply(*txs) for txs in chains])()
    np.testing.assert_allclose(flat(inside) + flat(outside), flat(UPDATES), **CLOSE)
    np.testing.assert_allclose(flat(twice), flat(inside), **CLOSE)
    np.testing.assert_allclose(flat(nothing), 0, **CLOSE)
    np.testing.assert_allclose(flat(inside), P @ flat(UPDATES), **CLOSE)


def test_spectral_filter_acts_on_each_eigenvector(x64):
    newton = lambda eigenvalues: 1 / (1 + eigenvalues)
    out, _ = first_update(exact(RANK, newton, 0.5), pytree(1), pytree(0))
    values, vectors = np.linalg.eigh(MATRIX)
    factors = np.where(np.isin(values, values[-RANK:]), 1 / (1 + values), 0.5)
    expected = (vectors * factors) @ vectors.T @ flat(pytree(1))
    np.testing.assert_allclose(flat(out), expected, **EXACT)


def test_scales_may_be_schedules_of_the_step():
    dominant, bulk = (lambda step: 0.1 * step), (lambda count: 1 - 0.2 * count)
    out, _ = history(exact(RANK, dominant, bulk), 4)
    u = flat(UPDATES)
    for step in range(4):
        expected = 0.1 * step * (P @ u) + (1 - 0.2 * step) * (u - P @ u)
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda x, step=step: x[step], out)), expected, **CLOSE
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_keep_their_dtype(dtype):
    updates, params = pytree(1, dtype), pytree(0, dtype)
    out, state = first_update(exact(RANK, 0.3, 2.0), updates, params)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(dtype)}
    vectors = jax.tree.leaves(state.subspace.eigenvectors)
    assert {x.dtype for x in vectors} == {jnp.dtype("float32")}
    u = flat(updates)
    expected = 0.3 * P @ u + 2 * (u - P @ u)
    # One rounding of the result, and of the Hessian in bfloat16: half of 2^-7 of
    # numbers up to 4.
    atol = 0.05 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(flat(out), expected, rtol=0, atol=atol)


# When the subspace is refreshed.


def quartic(params):
    """Its Hessian is diag(x²), so the top eigenvectors change with the params."""
    return sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(params)) / 12


def coordinates(state):
    """For a diagonal projector: which coordinates span the subspace, step by step."""
    leaves = jax.tree.leaves(state.subspace.eigenvectors)
    steps, rank = leaves[0].shape[:2]
    vectors = np.concatenate([np.reshape(x, (steps, rank, -1)) for x in leaves], axis=2)
    return [set(np.flatnonzero((row**2).sum(axis=0) > 0.5).tolist()) for row in vectors]


def test_refresh_interval_leaves_the_subspace_stale_in_between():
    x = np.arange(1.0, 12)
    params = ravel_pytree(PARAMS)[1](jnp.asarray(x, jnp.float32))
    # Coordinate 0 grows by 4 at each step: 1, 5, 9, 13 against 9, 10, 11.
    updates = ravel_pytree(PARAMS)[1](jnp.zeros(11).at[0].set(4))
    tx = exact(RANK, refresh_every=2)
    _, state = history(tx, 5, updates, params, quartic, move=1.0)
    before, after = {8, 9, 10}, {0, 9, 10}
    assert coordinates(state) == [before, before, before, before, after]
    assert state.total_matvecs.tolist() == [11, 11, 22, 22, 33]
    assert state.refreshes.tolist() == [1, 1, 2, 2, 3]
    assert state.count.tolist() == [1, 2, 3, 4, 5]
    assert not state.failed_refreshes.any()


def test_switch_by_step_costs_no_matvec_before_it():
    tx = exact(RANK, 0.0, 1.0, switch=3, refresh_every=2)
    out, state = history(tx, 7)
    # Refreshes count from the switch: at steps 3 and 5.
    assert state.total_matvecs.tolist() == [0, 0, 0, 11, 11, 22, 22]
    assert state.switched.tolist() == [False] * 3 + [True] * 4
    assert state.switch_count.tolist() == [-1] * 3 + [3] * 4
    assert state.alignment.tolist()[:3] == [0, 0, 0]
    u = flat(UPDATES)
    for step in range(7):
        at = jax.tree.map(lambda x, step=step: x[step], out)
        if step < 3:
            assert_same(at, UPDATES)
        else:
            np.testing.assert_allclose(flat(at), u - P @ u, **CLOSE)


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        # 0.8 (1 − 0.9ⁿ) > 0.4 from the 7th average on, that of step 6.
        (bulk_sgd.Switch(100, alignment=0.4), 6),
        # 0.8 (1 − 0.5ⁿ) > 0.75 from the 5th on.
        (bulk_sgd.Switch(100, alignment=0.75, decay=0.5), 4),
        # Never exceeded: 0.8 is not more than 0.8.
        (bulk_sgd.Switch(5, alignment=0.95), 5),
        (bulk_sgd.Switch(alignment=0.4), 6),
    ],
)
def test_switch_by_alignment_with_a_step_as_fallback(switch, expected):
    vectors = np.linalg.eigh(MATRIX)[1]
    inside, outside = vectors[:, -1], vectors[:, 0]
    u = ravel_pytree(PARAMS)[1](jnp.asarray(0.8 * inside + 0.6 * outside, jnp.float32))
    out, state = history(exact(RANK, 0.0, 1.0, switch=switch), 9, u)
    np.testing.assert_allclose(state.alignment, 0.8, rtol=1e-5)
    n = np.arange(1, 10)
    average = 0.8 * (1 - switch.decay**n)
    np.testing.assert_allclose(state.alignment_average, average, rtol=1e-5)
    assert state.switched.tolist() == (n > expected).tolist()
    assert state.switch_count.tolist() == np.where(n > expected, expected, -1).tolist()
    # χ is measured, and paid for, from the first step.
    assert state.refreshes.tolist() == n.tolist()
    before = jax.tree.map(lambda x: x[expected - 1], out)
    assert_same(before, u)
    after = flat(jax.tree.map(lambda x: x[expected], out))
    np.testing.assert_allclose(after, 0.6 * outside, **CLOSE)


def test_switch_stays_on_when_the_alignment_falls():
    inside = np.linalg.eigh(MATRIX)[1][:, -1]
    u = ravel_pytree(PARAMS)[1](jnp.asarray(inside, jnp.float32))
    switch = bulk_sgd.Switch(100, alignment=0.5, decay=0.0)
    tx = exact(RANK, 0.0, 1.0, switch=switch)

    @jax.jit
    def step(u, state):
        return tx.update(u, state, PARAMS, value_fn=LOSS)[1]

    state = step(u, tx.init(PARAMS))
    assert bool(state.switched)
    outside = ravel_pytree(PARAMS)[1](
        jnp.asarray(np.linalg.eigh(MATRIX)[1][:, 0], jnp.float32)
    )
    state = step(outside, state)
    np.testing.assert_allclose(state.alignment_average, 0, **CLOSE)
    assert bool(state.switched)
    assert int(state.switch_count) == 0


def test_average_follows_the_recursion_for_changing_updates():
    tx = exact(RANK, switch=bulk_sgd.Switch(100, alignment=0.95))
    step = jax.jit(lambda u, s: tx.update(u, s, PARAMS, value_fn=LOSS)[1])
    state, average = tx.init(PARAMS), 0.0
    for seed in range(5):
        u = pytree(seed, jnp.float32)
        state = step(u, state)
        chi = np.linalg.norm(P @ flat(u)) / np.linalg.norm(flat(u))
        average = 0.9 * average + 0.1 * chi
        np.testing.assert_allclose(state.alignment, chi, **CLOSE)
        np.testing.assert_allclose(state.alignment_average, average, **CLOSE)


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
    out, state = first_update(tx, u, params, made)

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
    assert spent[0] < 0.8 * spent[1]


def bad_value_fn(params, poison):
    return LOSS(params) + poison * LOSS(params)


def test_hessian_that_is_not_finite_keeps_the_previous_subspace():
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.lanczos(tol=1e-5))

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


# State.


def test_every_field_can_be_read_by_name():
    tx = optax.chain(optax.sgd(0.1), exact(RANK))
    _, state = first_update(tx)
    values = {
        "count": 1,
        "switched": True,
        "switch_count": 0,
        "total_matvecs": 11,
        "refreshes": 1,
        "failed_refreshes": 0,
        "converged": True,
        "num_matvecs": 11,
        "solver_state": (),
    }
    assert {name: tree_get(state, name) for name in values} == values
    chi = np.linalg.norm(P @ flat(UPDATES)) / np.linalg.norm(flat(UPDATES))
    np.testing.assert_allclose(tree_get(state, "alignment"), chi, rtol=1e-5)
    average = tree_get(state, "alignment_average")
    np.testing.assert_allclose(average, 0.1 * chi, rtol=1e-5)
    np.testing.assert_allclose(tree_get(state, "eigenvalues"), VALUES, rtol=1e-5)
    assert not tree_get(state, "residuals").any()
    found = projector(rows(tree_get(state, "eigenvectors")))
    np.testing.assert_allclose(found, P, **CLOSE)
    assert isinstance(tree_get(state, "subspace"), bulk_sgd.Subspace)
    documented = set(bulk_sgd.ScaleBySubspaceState._fields)
    assert documented <= {*values, "alignment", "alignment_average", "subspace"}


def test_vmap_over_seeds_equals_single_runs():
    tx = bulk_sgd.project_bulk(RANK, refresh_every=2)

    def run(x, u):
        def step(state, _):
            out, state = tx.update(u, state, x, value_fn=LOSS)
            return state, out

        state, out = jax.lax.scan(step, tx.init(x), length=3)
        return out, state.subspace.eigenvalues, state.total_matvecs, state.refreshes

    lanes = range(3)
    stack = lambda first: jax.tree.map(
        lambda *x: jnp.stack(x), *(pytree(first + i, jnp.float32) for i in lanes)
    )
    xs, us = stack(0), stack(10)
    batch = jax.jit(jax.vmap(run))(xs, us)
    run = jax.jit(run)
    for lane in lanes:
        at = functools.partial(jax.tree.map, lambda x, lane=lane: x[lane])
        single = run(at(xs), at(us))
        np.testing.assert_allclose(flat(at(batch[0])), flat(single[0]), **CLOSE)
        np.testing.assert_allclose(batch[1][lane], single[1], rtol=1e-5)
        assert int(batch[2][lane]) == int(single[2])
        assert int(batch[3][lane]) == int(single[3]) == 2


def test_refresh_stays_a_branch_under_vmap():
    tx = exact(RANK, refresh_every=2)
    state = jax.tree.map(lambda x: jnp.stack([x, x]), tx.init(PARAMS))
    update = lambda state: tx.update(UPDATES, state, PARAMS, value_fn=LOSS)[1]
    jaxpr = jax.make_jaxpr(jax.vmap(update))(state)
    assert count_equations(jaxpr, "cond") == 1
    (cond,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "cond"]
    # The work is in one branch, and nowhere else.
    inside = [count_equations(branch, "eigh") for branch in cond.params["branches"]]
    assert sorted(inside) == [0, 1]
    assert count_equations(jaxpr, "eigh") == 1
    # Lanes out of step: the one that is not due keeps what it has.
    state = state._replace(count=jnp.array([0, 1], jnp.int32))
    state = jax.jit(jax.vmap(update))(state)
    assert state.total_matvecs.tolist() == [11, 0]
    assert state.refreshes.tolist() == [1, 0]
    assert (state.subspace.eigenvalues[1] == 0).all()


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exact(0), "rank is 0; it must be at least 1"),
        (lambda: exact(2.5), r"rank is 2\.5; it must be an integer"),
        (
            lambda: exact(1, refresh_every=0),
            "refresh_every is 0; it must be at least 1",
        ),
        (lambda: exact(1, refresh_every=1.5), r"refresh_every is 1\.5; .*an integer"),
        (lambda: exact(1, curvature="fisher"), "curvature is 'fisher'; .*gauss_newton"),
        (lambda: exact(1, switch=-1), r"switch\.step is -1; it must be at least 0"),
        (lambda: exact(1, switch=0.5), r"switch\.step is 0\.5; it must be an integer"),
        (
            lambda: bulk_sgd.Switch(alignment=1.5),
            r"switch\.alignment is 1\.5; .*from 0 to 1",
        ),
        (
            lambda: bulk_sgd.Switch(alignment="high"),
            r"switch\.alignment is 'high'; it must be a number",
        ),
        (lambda: bulk_sgd.Switch(decay=1.0), r"from 0 below 1"),
        (lambda: bulk_sgd.Switch(decay=-0.1), r"switch\.decay is -0\.1; it must be"),
        (
            lambda: bulk_sgd.scale_by_subspace(1, solver="lanczos"),
            r"solver is 'lanczos'; it must be a bulk_sgd\.Solver",
        ),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (exact(12), r"rank is 12; it must be from 1 to 11 \(the number of \(masked\)"),
        (
            exact(5, mask={"b": True, "v": False, "w": False}),
            "rank is 5; .*from 1 to 1",
        ),
        (exact(1, mask={"b": False, "v": False, "w": False}), "mask selects no param"),
        (
            optax.masked(exact(1), {"b": True, "v": True, "w": False}),
            r"optax\.MaskedNode.*instead of wrapping.*mask=",
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_at_init(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)


def test_traced_rank_names_the_remedy():
    with pytest.raises(ValueError, match=r"rank is a traced array.*static_args"):
        jax.jit(lambda rank: exact(rank).init(PARAMS))(2)


@pytest.mark.parametrize(
    ("value_fn", "message"),
    [
        (None, "needs the keyword argument value_fn"),
        (1.0, r"value_fn is 1\.0; it must be a scalar function"),
        (lambda p: p["v"], r"value_fn returned float32\[4\]; .*real scalar"),
        (jax.value_and_grad(LOSS), r"value_fn returned float32\[\], float32"),
    ],
)
def test_value_fn_that_does_not_fit_is_refused(value_fn, message):
    tx = exact(1)
    with pytest.raises(TypeError, match=message):
        tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=value_fn)


def test_gauss_newton_needs_an_objective():
    tx = exact(1, curvature="gauss_newton")
    with pytest.raises(TypeError, match=r"gauss_newton needs a bulk_sgd\.Objective"):
        tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=LOSS)


def test_params_are_needed():
    tx = exact(1)
    with pytest.raises(ValueError, match=r"needs params: tx\.update\(grads, state, p"):
        tx.update(UPDATES, tx.init(PARAMS), value_fn=LOSS)


def test_unit_scales_keep_signed_zeros_and_what_is_not_finite():
    tx = bulk_sgd.scale_by_subspace(1, 1.0, 1.0)
    loss = lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2)
    params = jnp.ones(5)
    updates = jnp.array([-0.0, 0.0, 1.0, jnp.inf, -2.0])
    out, _ = tx.update(updates, tx.init(params), params, value_fn=loss)
    np.testing.assert_array_equal(out, updates)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(updates))


def test_filter_infinite_at_zero_does_not_meet_a_missing_direction():
    tx = bulk_sgd.scale_by_subspace(2, lambda eigenvalues: 1 / eigenvalues, 0.5)
    params, broken = jnp.ones(4), lambda x: jnp.sum(x**2) * jnp.nan
    out, state = tx.update(params, tx.init(params), params, value_fn=broken)
    assert int(state.failed_refreshes) == 1
    np.testing.assert_array_equal(out, 0.5 * params)


def test_update_that_is_not_finite_leaves_the_average_of_the_alignment():
    tx = bulk_sgd.scale_by_subspace(1)
    loss = lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2)
    params = jnp.ones(5)
    _, state = tx.update(params, tx.init(params), params, value_fn=loss)
    before = float(state.alignment_average)
    assert before > 0
    _, state = tx.update(params * jnp.nan, state, params, value_fn=loss)
    assert float(state.alignment_average) == before


def test_solver_with_too_few_matvecs_is_refused_at_init():
    tx = bulk_sgd.project_bulk(rank=3, solver=bulk_sgd.lanczos(max_matvecs=2))
    with pytest.raises(ValueError, match=r"max_matvecs is 2; it must be at least 3"):
        tx.init(jnp.ones(5))
