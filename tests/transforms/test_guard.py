"""The guard of `accelerated`: what it takes of eigenvalues, and when it waits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.solvers.subspace import Subspace
from bulk_sgd.transforms.guard import largest_in_bulk


@pytest.mark.parametrize(
    ("values", "kept", "bulk"),
    [
        ([10, 9, 8], [1, 1, 1], 8),
        ([10, 9, 8], [1, 0, 0], 9),  # dropped by `adaptive`
        ([10, 9, 0], [1, 1, 0], 9),  # not yet found
        ([10, -7, 6], [1, 1, 1], 6),  # by magnitude
        ([10, 8, -7], [1, 1, 1], 7),
    ],
)
def test_the_bulk_is_bounded_by_its_largest_eigenvalue(values, kept, bulk):
    rows = jnp.eye(3, 11) * jnp.asarray(kept, jnp.float32)[:, None]
    zeros = jnp.zeros(3)
    found = Subspace(jnp.asarray(values, jnp.float32), rows, zeros, True, 3)
    assert float(largest_in_bulk(found)) == bulk


@pytest.mark.parametrize("gain", [0.1, 0.2, 0.4])
def test_eigenvalues_that_are_still_too_low_do_not_scale(gain):
    values, rate = jnp.linspace(10, -8, 200), 0.25
    tx = bulk_sgd.accelerated(
        optax.sgd(rate), rate, rank=10, solver=bulk_sgd.streaming(gain=gain), switch=0
    )

    def step(state, key):
        grads = values * jax.random.normal(key, values.shape)
        state = tx.update(grads, state, grads, matvec=lambda v: values * v)[1]
        return state, (state.scaled, state.projection.subspace.eigenvalues.max())

    keys = jax.random.split(jax.random.key(0), 150)
    _, (scaled, tops) = jax.jit(lambda: jax.lax.scan(step, tx.init(values), keys))()
    assert not scaled.any()
    assert rate * tops[20] < 2  # though η λ_1 = 2.5


@pytest.mark.parametrize(
    ("factors", "resting"),
    [
        ([2.9, 2.9], []),
        ([3.1], [30]),
        ([3.1, 1, 3.5], [30, 32]),
        ([3.1, 3.5], [30, 31, 32, 33]),
        ([jnp.nan, jnp.nan], [30, 31, 32, 33]),
    ],
)
def test_after_two_surges_every_vector_needs_one_more_product(factors, resting):
    values, solver = jnp.linspace(2, -1, 20), bulk_sgd.streaming(gain=0.4)
    tx = bulk_sgd.accelerated(optax.sgd(0.1), 0.1, rank=3, solver=solver, switch=0)

    def step(state, size):
        grads = size * jnp.ones(20)
        updates, state = tx.update(grads, state, values, matvec=lambda v: values * v)
        return state, (updates, state)

    sizes = jnp.ones(50).at[30 : 30 + len(factors)].set(jnp.asarray(factors))
    run = jax.jit(lambda: jax.lax.scan(step, tx.init(values), sizes)[1])
    updates, states = run()
    first = 6 * 3 - 1  # six products per vector
    assert np.flatnonzero(~states.scaled).tolist() == [*range(first), *resting]
    plain = -0.1 * sizes[:, None] * jnp.ones(20)
    same = jnp.all((updates == plain) | jnp.isnan(plain), axis=1)
    assert np.array_equal(same, ~states.scaled)


def test_the_running_average_follows_a_gradient_that_stays_large():
    tx = bulk_sgd.accelerated(optax.sgd(0.1), 0.1, rank=1, surge=2.0, switch=0)
    matvec = lambda v: v
    x = jnp.ones(8)
    sizes = jnp.asarray([jnp.nan, *jnp.ones(15), *jnp.zeros(15), *jnp.full(90, 5.0)])

    def step(state, size):
        return tx.update(size * x, state, x, matvec=matvec)[1], state.memory

    end, memories = jax.jit(lambda: jax.lax.scan(step, tx.init(x), sizes))()
    norms = np.asarray(memories.gradient_norm) / np.sqrt(8)
    np.testing.assert_allclose(norms[[1, 2, 31]], [0, 1, 1], rtol=1e-6)
    assert norms[32] == pytest.approx(0.95 + 0.05 * 2, rel=1e-6)  # capped at 2
    assert float(end.memory.gradient_norm) == pytest.approx(5 * np.sqrt(8), rel=0.05)


def test_a_surge_of_another_dtype_leaves_the_dtypes_of_the_state(x64):
    x = jnp.ones(8)
    tx = bulk_sgd.accelerated(
        optax.sgd(0.1), 0.1, rank=1, surge=jnp.asarray(2.0, jnp.float64), switch=0
    )
    step = lambda state, _: (tx.update(x, state, x, matvec=lambda v: v)[1], None)
    end, _ = jax.lax.scan(step, tx.init(x), length=3)
    assert end.memory.gradient_norm.dtype == jnp.float32
    assert float(end.memory.gradient_norm) == pytest.approx(np.sqrt(8), rel=1e-6)
