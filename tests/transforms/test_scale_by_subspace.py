"""The formula of scale_by_subspace, and when its subspace is refreshed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, flat
from jax.flatten_util import ravel_pytree
from transform_runs import (
    CLOSE,
    EXACT,
    LOSS,
    MATRIX,
    PARAMS,
    RANK,
    UPDATES,
    VALUES,
    P,
    assert_same,
    exact,
    first_update,
    history,
    pytree,
)

import bulk_sgd

pytestmark = pytest.mark.usefixtures("strict_ranks")


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
    newton = bulk_sgd.spectral_filter(lambda x: 1 / (1 + x))
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


def test_unit_scales_keep_signed_zeros_and_what_is_not_finite():
    tx = bulk_sgd.scale_by_subspace(1, 1.0, 1.0)
    loss = lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2)
    params = jnp.ones(5)
    updates = jnp.array([-0.0, 0.0, 1.0, jnp.inf, -2.0])
    out, _ = tx.update(updates, tx.init(params), params, value_fn=loss)
    np.testing.assert_array_equal(out, updates)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(updates))


def test_filter_infinite_at_zero_does_not_meet_a_missing_direction():
    tx = bulk_sgd.scale_by_subspace(2, bulk_sgd.spectral_filter(jnp.reciprocal), 0.5)
    params, broken = jnp.ones(4), lambda x: jnp.sum(x**2) * jnp.nan
    with pytest.warns(UserWarning, match="no subspace is known yet"):
        out, state = tx.update(params, tx.init(params), params, value_fn=broken)
    assert int(state.failed_refreshes) == 1
    np.testing.assert_array_equal(out, 0.5 * params)


def test_injected_hyperparams_leave_a_spectral_filter_alone(x64):
    newton = bulk_sgd.spectral_filter(lambda x: 1 / (1 + x))
    make = optax.inject_hyperparams(bulk_sgd.scale_by_subspace, static_args="rank")
    out, _ = first_update(make(RANK, newton, 0.5, solver=exact_solver()))
    expected, _ = first_update(exact(RANK, newton, 0.5))
    np.testing.assert_allclose(flat(out), flat(expected), **CLOSE)


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
        # 0.8 (1 − 0.5ⁿ) > 0.76 from the 5th on; the 4th is 0.75, the 5th 0.775.
        (bulk_sgd.Switch(100, alignment=0.76, decay=0.5), 4),
        # Never exceeded, so the step decides.
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


def test_switch_by_alignment_waits_for_more_than_its_threshold():
    switch = bulk_sgd.Switch(alignment=0.5)
    assert [bool(switch.acts(0, average)) for average in (0.5, 0.51)] == [False, True]


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


def test_update_that_is_not_finite_leaves_the_average_of_the_alignment():
    tx = bulk_sgd.scale_by_subspace(1)
    loss = lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2)
    params = jnp.ones(5)
    _, state = tx.update(params, tx.init(params), params, value_fn=loss)
    before = float(state.alignment_average)
    assert before > 0
    _, state = tx.update(params * jnp.nan, state, params, value_fn=loss)
    assert float(state.alignment_average) == before
