"""The optimizer `accelerated`, against the dense formula and the optimizer inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, flat, symmetric, top
from transform_runs import CLOSE, EXACT, assert_same, pytree

import bulk_sgd

RANK = 3
MATRIX = symmetric([10, 9, 8, 1, 0.9, 0.5, 0.3, 0.2, 0.1, 0, -1])
VALUES, P = top(MATRIX, RANK)
SETTLED = 2  # the third solve, after 3 · 11 ≥ 10 · RANK products
FACTORS = {"dominant_scale": 0.25, "bulk_scale": 3.0}
make = functools.partial(
    bulk_sgd.accelerated, rank=RANK, solver=exact_solver(), switch=0, **FACTORS
)
momentum = functools.partial(optax.sgd, momentum=0.9)


def products(t, vector, broken=()):
    """Products with the matrix, NaN at some steps."""
    x, unravel = jax.flatten_util.ravel_pytree(vector)
    bad = jnp.isin(t, jnp.asarray(list(broken))) if len(broken) else False
    return unravel(jnp.where(bad, jnp.nan, jnp.asarray(MATRIX, x.dtype) @ x))


def history(tx, steps=12, broken=(), dtype=None):
    """The updates of some steps, as dicts of stacked arrays, and the states."""
    params = pytree(0, dtype)

    def step(state, t):
        grads = jax.tree.map(lambda x: x * jnp.cos(t), pytree(1, dtype))
        matvec = functools.partial(products, t, broken=broken)
        updates, state = tx.update(grads, state, params, matvec=matvec)
        return state, (updates, state)

    if isinstance(tx, optax.GradientTransformation):
        tx = optax.with_extra_args_support(tx)
    run = lambda: jax.lax.scan(step, tx.init(params), jnp.arange(steps))[1]
    return jax.jit(run)()


def at(tree, step):
    return jax.tree.map(lambda x: x[step], tree)


def expected(plain, step, factors, bulk=3.0):
    """The update with a factor per eigenvector and one for the bulk."""
    u = flat(at(plain, step))
    _, vectors = np.linalg.eigh(MATRIX)
    found = bulk * (u - P @ u)
    for factor, row in zip(factors, vectors.T[::-1]):
        found += factor * row * (row @ u)
    return found


def test_a_settled_step_scales_the_update_of_the_optimizer_by_the_projector(x64):
    rate = 0.01
    plain, _ = history(momentum(rate))
    found, states = history(make(momentum(rate), rate))
    for t in range(SETTLED, 12):
        np.testing.assert_allclose(
            flat(at(found, t)), expected(plain, t, [0.25] * 3), **EXACT
        )
    assert states.scaled.tolist() == [False] * SETTLED + [True] * 10


@pytest.mark.parametrize("switch", [0, 4, bulk_sgd.Switch(step=4)])
def test_steps_before_are_those_of_the_optimizer_bit_for_bit(switch):
    first = SETTLED + (4 if switch else 0)
    plain, _ = history(optax.sgd(0.01))
    found, _ = history(make(optax.sgd(0.01), 0.01, switch=switch))
    assert_same(at(found, slice(first)), at(plain, slice(first)))
    assert not np.array_equal(flat(at(found, first)), flat(at(plain, first)))


def test_products_that_are_not_finite_leave_the_optimizer_until_they_are():
    broken = range(8, 11)
    plain, _ = history(optax.sgd(0.01), 14)
    found, states = history(make(optax.sgd(0.01), 0.01), 14, broken)
    scaled = [t for t in range(SETTLED, 14) if t not in broken]
    assert np.flatnonzero(states.scaled).tolist() == scaled
    assert_same(at(found, slice(8, 11)), at(plain, slice(8, 11)))
    np.testing.assert_allclose(
        flat(at(found, 11)), expected(plain, 11, [0.25] * 3), **CLOSE
    )


def test_a_solver_that_rests_after_a_failure_is_not_scaled():
    exact = exact_solver()

    def solve(matvec, subspace, state, updates, key):
        acts = state % 4 == 0
        found, _ = exact.solve(matvec, subspace, (), updates, key)
        works = acts & found.converged
        kept = jax.tree.map(lambda x, y: jnp.where(works, x, y), found, subspace)
        spent = acts * 10 * RANK
        return kept._replace(converged=works | ~acts, num_matvecs=spent), state + 1

    solver = bulk_sgd.Solver(lambda params, rank: jnp.int32(0), solve, guarded=True)
    _, states = history(make(optax.sgd(0.01), 0.01, solver=solver), 16, [8])
    resting = [t for t in range(16) if not 8 <= t < 12]
    assert np.flatnonzero(states.scaled).tolist() == resting


@pytest.mark.parametrize(
    ("solver", "broken", "settled"),
    [
        # It acts 18 times in 18 failed steps, and then in every fourth.
        (bulk_sgd.streaming(every=4, gain=0.4), range(18), 18 + 17 * 4),
        # Solves of 11 products at steps 0, 5 and 11, and probes between them.
        (bulk_sgd.on_drift(exact_solver(), solve_every=6), [], 11),
    ],
)
def test_products_that_fail_probe_or_are_not_taken_do_not_settle(
    solver, broken, settled
):
    _, states = history(make(optax.sgd(0.01), 0.01, solver=solver), 90, broken)
    assert np.flatnonzero(states.scaled)[0] == settled


@pytest.mark.parametrize(("residual", "scaled"), [(9.0, True), (11.0, False)])
def test_residuals_above_the_tolerance_leave_the_optimizer(residual, scaled):
    exact = exact_solver()

    def solve(*arguments):
        found, state = exact.solve(*arguments)
        residuals = found.residuals.at[1].set(residual)  # λ_1 is 10
        return found._replace(residuals=residuals), state

    solver = exact._replace(solve=solve)
    plain, _ = history(optax.sgd(0.01))
    found, states = history(make(optax.sgd(0.01), 0.01, solver=solver, tol=1.0))
    assert states.scaled[-1] == scaled
    assert np.array_equal(flat(at(found, -1)), flat(at(plain, -1))) is not scaled


def test_a_negative_spectrum_is_not_scaled(monkeypatch):
    monkeypatch.setattr(f"{__name__}.MATRIX", -np.eye(11))
    assert not history(make(optax.sgd(0.01), 0.01))[1].scaled.any()


@pytest.mark.parametrize("a", [0.25, 2.0])
def test_steps_are_whole_beyond_the_threshold_and_the_bulk_is_bounded(a, x64):
    rates = jnp.geomspace(0.02, 0.25, 13)
    schedule = lambda step: rates[step]
    plain, _ = history(optax.sgd(schedule), 13)
    tx = make(optax.sgd(schedule), schedule, threshold=2.0, dominant_scale=a)
    found, states = history(tx, 13)
    seen = set()
    for t in range(SETTLED, 13):
        bulk = min(2 / (rates[t] * VALUES[-1]), 3)
        stable = max(a, 1) * rates[t] * VALUES[0] <= 2
        dense = expected(plain, t, [a] * 3, bulk) if stable else flat(at(plain, t))
        np.testing.assert_allclose(flat(at(found, t)), dense, **EXACT)
        assert states.scaled[t] == stable
        seen.add((bool(stable), bool(bulk < 3)))
    assert seen == {(True, False), (True, True), (False, True)}


def test_sharpness_that_outruns_a_fixed_rate_has_its_part_back():
    # The curvature along x_0 grows with x_1, which the steps increase.
    loss = lambda x: 0.5 * (1 + x[1]) ** 2 * x[0] ** 2 - x[1]
    rate, x = 0.2, jnp.asarray([1e-3, 0.0])
    tx = bulk_sgd.accelerated(
        optax.sgd(rate), rate, rank=1, dominant_scale=0.0, bulk_scale=1.0, switch=0,
        solver=exact_solver(),
    )  # fmt: skip
    state = tx.init(x)

    @jax.jit
    def step(x, state):
        grads = jax.grad(loss)(x)
        updates, state = tx.update(grads, state, x, value_fn=loss)
        return updates, state, -rate * grads

    for t in range(16):
        sharpness = float(jnp.linalg.eigvalsh(jax.hessian(loss)(x))[-1])
        updates, state, plain = step(x, state)
        settled = t >= 4  # two products per solve
        assert bool(state.scaled) is (settled and rate * sharpness < 2)
        assert np.array_equal(updates, plain) is (not state.scaled)
        x = optax.apply_updates(x, updates)
    assert rate * sharpness > 2


def test_metric_is_that_of_the_optimizer(x64):
    adam = optax.adam(0.01)
    tx = make(adam, 0.01, metric=bulk_sgd.adam_preconditioner)
    plain, _ = history(adam)
    found, states = history(tx, dtype=None)
    d = flat(bulk_sgd.adam_preconditioner(at(states.inner_state, -1)))
    u = np.sqrt(d) * flat(at(plain, -1))
    scaled = MATRIX / np.sqrt(np.outer(d, d))
    inside = top(scaled, RANK)[1] @ u
    assert 0.01 * top(scaled, RANK)[0][0] < 2  # below the threshold
    dense = (0.25 * inside + 3 * (u - inside)) / np.sqrt(d)
    np.testing.assert_allclose(flat(at(found, -1)), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", [0.0, jnp.nan])
def test_a_metric_that_cannot_be_divided_by_leaves_the_optimizer(broken):
    def metric(inner_state):
        d = jax.tree.map(jnp.ones_like, pytree(0))
        return d | {"v": d["v"].at[0].set(broken)}

    plain, _ = history(optax.sgd(0.01))
    found, states = history(make(optax.sgd(0.01), 0.01, metric=metric))
    assert not states.scaled.any()
    assert_same(found, plain)


def test_wrappers_of_optax_change_nothing():
    rate = optax.cosine_decay_schedule(0.05, 12)
    whole, _ = history(make(momentum(rate), rate))
    chained = optax.chain(optax.identity(), make(momentum(rate), rate))
    np.testing.assert_allclose(flat(history(chained)[0]), flat(whole), **CLOSE)
    hyper = optax.inject_hyperparams(
        lambda learning_rate: make(momentum(learning_rate), learning_rate)
    )
    constant, _ = history(make(momentum(0.05), 0.05))
    injected = history(hyper(learning_rate=0.05))[0]
    np.testing.assert_allclose(flat(injected), flat(constant), **CLOSE)
    every, _ = history(optax.MultiSteps(make(momentum(rate), rate), 1))
    np.testing.assert_allclose(flat(every), flat(whole), **CLOSE)


def test_inject_hyperparams_leaves_a_metric_that_it_is_told_of():
    inject = functools.partial(optax.inject_hyperparams, bulk_sgd.accelerated)
    given = {"inner": optax.adam(0.01), "learning_rate": 0.01, "rank": RANK}
    given |= {"metric": bulk_sgd.adam_preconditioner, "solver": exact_solver()}
    given |= {"switch": 0}
    plain, _ = history(bulk_sgd.accelerated(**given))
    injected, _ = history(inject(static_args=("rank", "metric"))(**given))
    np.testing.assert_allclose(flat(injected), flat(plain), **CLOSE)
    with pytest.raises(ValueError, match="0 states of Adam"):
        history(inject(static_args="rank")(**given))


def test_a_state_that_was_saved_goes_on_bit_for_bit():
    rate = optax.cosine_decay_schedule(0.05, 12)
    tx, params, grads = make(momentum(rate), rate), pytree(0), pytree(1)

    @jax.jit
    def step(state, t):
        matvec = functools.partial(products, t, broken=[4])
        return tx.update(grads, state, params, matvec=matvec)

    states = [tx.init(params)]
    for t in range(10):
        updates, state = step(states[-1], t)
        states.append(state)
    assert not states[5].memory.sound
    assert states[7].scaled
    for first in (2, 5, 7):
        again = jax.tree.map(np.asarray, states[first])
        for t in range(first, 10):
            found, again = step(again, t)
        assert_same((found, again), (updates, states[-1]))


@pytest.mark.slow
def test_defaults_settle_on_a_small_network():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(20, 20)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(50, 20)) * np.geomspace(3, 0.1, 20), jnp.float32)
    y = jnp.asarray(rng.normal(size=(50, 20)), jnp.float32)
    loss = lambda p: jnp.mean((x @ p["w"] - y) ** 2)
    ends = {}
    for name in ("plain", "accelerated"):
        tx = optax.with_extra_args_support(optax.sgd(0.5))
        if name == "accelerated":
            tx = bulk_sgd.accelerated(optax.sgd(0.5), 0.5)

        def step(carry, _, tx=tx):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p, value_fn=loss)
            scaled = optax.tree_utils.tree_get(state, "scaled")
            return (optax.apply_updates(p, updates), state), scaled

        run = lambda p: jax.lax.scan(step, (p, tx.init(p)), length=300)  # noqa: B023
        (p, _), scaled = jax.jit(run)(params)
        ends[name] = float(loss(p))
    # The default switch, then six products per vector, the last at step 159.
    assert scaled.tolist() == [step >= 159 for step in range(300)]
    assert ends["accelerated"] < ends["plain"]
