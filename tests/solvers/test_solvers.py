"""What every solver owes to the transforms, whatever it does."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.solvers import subspace

SIZE, RANK = 12, 4
MATRIX = helpers.symmetric([9, 7, 5, 3, *np.linspace(0.5, -1, SIZE - 4)])
TARGET = np.random.default_rng(0).standard_normal(SIZE)

SOLVERS = {
    "lanczos": bulk_sgd.lanczos(),
    "power": bulk_sgd.power(),
    "power along the update": bulk_sgd.power("update"),
    "on_drift": bulk_sgd.on_drift(bulk_sgd.power()),
    "adaptive": bulk_sgd.adaptive(bulk_sgd.lanczos(), 1.0),
    "streaming": bulk_sgd.streaming(),
    "krylov_filter": bulk_sgd.krylov_filter(6, calibrate_every=3),
    "blockwise": bulk_sgd.blockwise(bulk_sgd.lanczos()),
    "blockwise streaming": bulk_sgd.blockwise(bulk_sgd.streaming()),
    "update_pca": bulk_sgd.update_pca(6),
    "streaming_pca": bulk_sgd.streaming_pca(),
}
HESSIAN_FREE = ("update_pca", "streaming_pca")
ALL = pytest.mark.parametrize("name", SOLVERS)


def shaped(flat, dtype=jnp.float32):
    """Two blocks, of 8 and 4 parameters."""
    flat = jnp.asarray(flat, dtype)
    return {"a": flat[:8].reshape(2, 4), "b": flat[8:]}


@functools.cache
def program(name, rank):
    """One compiled step of a projection, at curvature ½ xᵀAx and any update."""
    tx = bulk_sgd.project_bulk(rank, solver=SOLVERS[name])

    @jax.jit
    def step(matrix, update, state):
        def loss(params):
            x = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
            return 0.5 * x @ matrix @ x

        return tx.update(update, state, shaped(TARGET), value_fn=loss)

    return tx, step


def run(name, matrices, updates=None, rank=RANK):
    """Updates and states along a path; a new random update for each by default."""
    tx, step = program(name, rank)
    if updates is None:
        rng = np.random.default_rng(1)
        draws = rng.standard_normal((len(matrices), SIZE))
        updates = draws @ np.nan_to_num(MATRIX)
    state, found = tx.init(shaped(TARGET)), []
    for matrix, update in zip(matrices, updates):
        out, state = step(jnp.asarray(matrix, jnp.float32), shaped(update), state)
        found.append((out, state))
    return found


def vectors(state):
    return helpers.rows(state.subspace.eigenvectors)


@ALL
def test_rows_are_orthonormal_or_zero(name):
    rows = vectors(run(name, [MATRIX] * 8)[-1][1])
    gram = rows @ rows.T
    kept = np.diag(gram) > 0.5
    np.testing.assert_allclose(gram, np.diag(kept.astype(float)), atol=2e-5)
    assert kept.any()


@ALL
def test_types_stay_and_nothing_recompiles(name):
    before = program(name, RANK)[0].init(shaped(TARGET))
    after = run(name, [MATRIX] * 3)[-1][1]
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(after) == types(before)
    assert after.subspace.eigenvectors["a"].dtype == jnp.float32
    assert program(name, RANK)[1]._cache_size() == 1


@ALL
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_state_is_in_the_working_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = bulk_sgd.project_bulk(RANK, solver=SOLVERS[name])
        params = shaped(TARGET, dtype)
        loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
        state = tx.init(params)
        step = lambda u, s: tx.update(u, s, params, value_fn=loss)
        updates, after = jax.eval_shape(step, params, state)
        types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert types(updates) == types(params)
        assert types(after) == types(state)
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        assert after.subspace.eigenvectors["a"].dtype == wide


@ALL
def test_tree_map_params_takes_the_state(name):
    tx = program(name, RANK)[0]
    state = tx.init(shaped(TARGET))
    marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 7, state)
    assert (marked.subspace.eigenvectors["a"] == 7).all()
    assert jax.tree.structure(marked) == jax.tree.structure(state)


@ALL
def test_curvature_that_is_not_finite_keeps_the_subspace(name):
    states = [state for _, state in run(name, [MATRIX] * 6 + [MATRIX * np.nan] * 2)]
    good, bad = states[5], states[-1]
    np.testing.assert_array_equal(
        np.isfinite(vectors(bad)), np.ones_like(vectors(bad), bool)
    )
    if name in HESSIAN_FREE:
        assert int(bad.failed_refreshes) == 0
        return
    np.testing.assert_array_equal(vectors(bad), vectors(good))
    np.testing.assert_array_equal(bad.subspace.eigenvalues, good.subspace.eigenvalues)
    assert int(bad.failed_refreshes) == 2


@pytest.mark.parametrize("name", HESSIAN_FREE)
def test_update_that_is_not_finite_keeps_the_subspace(name):
    draws = np.random.default_rng(1).standard_normal((9, SIZE))
    draws[6] = np.inf
    states = [state for _, state in run(name, [MATRIX] * 9, draws)]
    assert [int(s.failed_refreshes) for s in states[5:]] == [0, 1, 1, 1]
    np.testing.assert_array_equal(vectors(states[6]), vectors(states[5]))
    for leaf in jax.tree.leaves(states[-1]):
        assert np.isfinite(leaf).all()


EVERY = {  # and how many branches, those of norms included
    "krylov_filter": (bulk_sgd.krylov_filter(6, calibrate_every=2), 1),
    "update_pca": (bulk_sgd.update_pca(6, every=2), 2),
    "streaming_pca": (bulk_sgd.streaming_pca(), 3),
    "streaming": (bulk_sgd.streaming(every=2), 1),
    "on_drift": (bulk_sgd.on_drift(bulk_sgd.lanczos(), 1, every=2), 2),
    "power": (bulk_sgd.power(), 2),
}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_due_by_a_count_stays_a_branch_under_vmap(name):
    solver, branches = EVERY[name]
    matrix = jnp.asarray(MATRIX, jnp.float32)
    updates = jnp.asarray(np.random.default_rng(2).standard_normal((4, SIZE)) @ matrix)

    def call(found, state, update):
        key = jax.random.key(0)
        return solver.solve(lambda v: matrix @ v, found, state, update, key)

    lanes = []
    for count in (2, 3):  # two lanes out of step
        carry = subspace.empty(updates[0], RANK), solver.init(updates[0], RANK)
        for update in updates[:count]:
            carry = jax.jit(call)(*carry, update)
        lanes.append((*carry, updates[count % 2]))
    batch = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
    traced = jax.jit(jax.vmap(call)).trace(*batch)
    assert sum(e.primitive.name == "cond" for e in traced.jaxpr.eqns) == branches
    found, state = traced.lower().compile()(*batch)
    if name == "krylov_filter":  # a full solve of one is one of all
        assert (found.num_matvecs > 6).all()
        return
    for lane, arguments in enumerate(lanes):
        alone, own = jax.jit(call)(*arguments)
        at = lambda x, lane=lane: x[lane]
        # One computation by two programs: rounding of float32.
        np.testing.assert_allclose(
            helpers.projector(helpers.rows(at(found.eigenvectors))),
            helpers.projector(helpers.rows(alone.eigenvectors)),
            atol=1e-4,
        )
        np.testing.assert_allclose(at(found.eigenvalues), alone.eigenvalues, rtol=1e-3)
        assert int(at(found.num_matvecs)) == int(alone.num_matvecs)
        for count, its_own in zip(jax.tree.leaves(state), jax.tree.leaves(own)):
            if count.dtype == jnp.int32:
                assert int(at(count)) == int(its_own)


@pytest.mark.parametrize("name", HESSIAN_FREE)
def test_one_direction_of_the_updates(name):
    for out, state in run(name, [MATRIX] * 4, rank=1):
        assert np.isfinite(helpers.flat(out)).all()
        assert np.linalg.norm(vectors(state)) in (0, pytest.approx(1, abs=1e-6))
    assert np.linalg.norm(vectors(state)) > 0


def test_a_block_without_curvature_does_not_hold_up_the_others():
    matrix = np.zeros_like(MATRIX)
    matrix[:8, :8] = helpers.symmetric([9, 7, 0.5, 0.4, 0.3, 0.2, 0.1, 0])
    *_, (_, state) = run("blockwise streaming", [matrix] * 40)
    assert int(state.failed_refreshes) == 0
    np.testing.assert_allclose(state.subspace.eigenvalues, [9, 7, 0, 0], atol=0.4)
    assert int(state.subspace.kept) == 2


@ALL
def test_zero_operator_has_eigenvalues_of_zero_and_a_projector(name):
    updates = np.random.default_rng(2).standard_normal((4, SIZE))
    for update, (out, state) in zip(updates, run(name, [0 * MATRIX] * 4, updates)):
        rows = vectors(state)
        gram = rows @ rows.T
        np.testing.assert_allclose(gram, np.diag(np.diag(gram) > 0.5), atol=2e-5)
        bulk = update - rows.T @ (rows @ update)
        np.testing.assert_allclose(helpers.flat(out), bulk, atol=2e-5)
        if name not in HESSIAN_FREE:
            np.testing.assert_array_equal(state.subspace.eigenvalues, 0)


@ALL
def test_zero_update_gives_finite_numbers(name):
    for out, state in run(name, [MATRIX] * 3, np.zeros((3, SIZE))):
        np.testing.assert_array_equal(helpers.flat(out), 0)
        assert np.isfinite(vectors(state)).all()


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("krylov_filter", SIZE - 1),
        ("krylov_filter", SIZE),
        ("blockwise", 8),  # of which 4 for the 4 parameters of the second block
        ("update_pca", 6),
        ("streaming_pca", SIZE),
    ],
)
def test_rank_near_the_dimension(name, rank):
    for out, state in run(name, [MATRIX] * 4, rank=rank):
        assert int(state.failed_refreshes) == 0
        assert np.isfinite(helpers.flat(out)).all()
        assert np.isfinite(vectors(state)).all()
    if name == "krylov_filter" and rank == SIZE:
        np.testing.assert_allclose(helpers.flat(out), 0, atol=2e-4)


@pytest.mark.parametrize("wrap", [bulk_sgd.on_drift, bulk_sgd.adaptive])
@pytest.mark.parametrize("name", [*HESSIAN_FREE, "krylov_filter"])
def test_what_goes_by_eigenpairs_refuses_a_solver_without(wrap, name):
    message = f"solver is {name}, which keeps no eigenpairs .* such as bulk_sgd.lanczos"
    with pytest.raises(ValueError, match=message):
        wrap(SOLVERS[name])
    with pytest.raises(ValueError, match=r"solver is blockwise, which .* or wraps"):
        wrap(bulk_sgd.blockwise(SOLVERS[name]))
    with pytest.raises(ValueError, match=r"solver is .*\.solve, which keeps no ei"):
        wrap(SOLVERS[name]._replace(name=""))


@pytest.mark.parametrize("name", ["streaming", "update_pca"])
def test_lanes_out_of_step_keep_what_a_guarded_solver_had(name):
    tx = bulk_sgd.project_bulk(4, refresh_every=3, solver=SOLVERS[name])
    loss = lambda x: 0.5 * x @ jnp.asarray(MATRIX, jnp.float32) @ x
    params = jnp.ones(SIZE)

    @jax.jit
    def update(state, u):
        return tx.update(u, state, params, value_fn=loss)[1]

    state, steps = tx.init(params), [3, 4, 5]  # of which the first is due
    draws = jax.random.normal(jax.random.key(0), (4, SIZE))
    for u in draws[:3]:
        state = update(state._replace(count=jnp.int32(0)), u)
    states = [state._replace(count=jnp.int32(step)) for step in steps]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    batch = jax.jit(jax.vmap(lambda state: update(state, draws[3])))(stacked)
    for lane, before in enumerate(states):
        found = jax.tree.map(lambda x, lane=lane: x[lane], batch)
        single = update(before, draws[3])
        for part in ("subspace", "solver_state"):
            got, alone, old = (
                helpers.flat(getattr(x, part)) for x in (found, single, before)
            )
            np.testing.assert_allclose(got, alone, rtol=1e-3, atol=1e-3)
            assert np.array_equal(got, old) == (lane > 0)
