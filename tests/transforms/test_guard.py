"""The guard of `accelerated`: what it takes of eigenvalues, and when it waits."""

import jax
import jax.numpy as jnp
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
