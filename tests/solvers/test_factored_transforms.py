"""Transforms whose basis is in factors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis

RANK = 4


def loss_of(params, inputs):
    """Regression of a small network, whose Hessian changes with the parameters."""
    hidden = jnp.tanh(inputs @ params["w0"] + params["b"])
    return jnp.mean((hidden @ params["w1"] - inputs[:, :3]) ** 2)


def network(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key, shape: 0.5 * jax.random.normal(key, shape).astype(dtype)
    shapes = {"w0": (9, 8), "b": (1, 8), "w1": (8, 3)}
    return {name: draw(key, s) for key, (name, s) in zip(keys, shapes.items())}


@functools.cache
def stepper(columns=1, dtype=jnp.float32, **options):
    solver = bulk_sgd.streaming(columns, factors=2, **options)
    tx = bulk_sgd.bulk_sgd(0.1, rank=RANK, solver=solver)

    def step(carry, key):
        params, state = carry
        inputs = jax.random.normal(key, (32, 9)).astype(dtype)
        value_fn = lambda params: loss_of(params, inputs).astype(jnp.float32)
        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), updates

    return tx, jax.jit(step)


def start(tx, dtype=jnp.float32):
    params = network(dtype)
    return params, tx.init(params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_transform_projects_the_updates_exactly(dtype):
    tx, step = stepper(dtype=dtype)
    carry = start(tx, dtype)
    for index in range(30):
        carry, updates = step(carry, jax.random.key(index))
    state = optax.tree_utils.tree_get(carry[1], "subspace")
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
        lambda x: x.dtype, carry[0]
    )
    inside = basis.norm(state.project(updates)) / basis.norm(updates)
    # Rounding of the updates to the dtype of the parameters.
    assert float(inside) < 2 * float(jnp.finfo(dtype).eps) + 1e-5
    assert int(optax.tree_utils.tree_get(carry[1], "failed_refreshes")) == 0
    assert int(optax.tree_utils.tree_get(carry[1], "total_matvecs")) == 30
    assert np.all(np.asarray(state.eigenvalues) > 0)


def test_a_restored_state_goes_on_bit_for_bit():
    tx, step = stepper()
    carry = start(tx)
    straight = carry
    for index in range(10):
        straight, _ = step(straight, jax.random.key(index))
        if index == 4:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(straight)]
    blank = start(tx)
    restored = jax.tree.structure(blank).unflatten(leaves)
    for index in range(5, 10):
        restored, _ = step(restored, jax.random.key(index))
    jax.tree.map(np.testing.assert_array_equal, restored, straight)


@pytest.mark.slow
def test_lanes_are_as_alone():
    tx, step = stepper()
    lanes = jax.vmap(jax.random.key)(jnp.arange(2))

    def run(key):
        return jax.lax.scan(step, start(tx), jax.random.split(key, 12))[0]

    both = jax.jit(jax.vmap(run))(lanes)
    alone = jax.jit(run)(lanes[1])
    for x, y in zip(jax.tree.leaves(both[0]), jax.tree.leaves(alone[0])):
        np.testing.assert_allclose(x[1], y, atol=1e-4)


@pytest.mark.slow
def test_without_matrices_it_is_the_dense_tracker():
    sharpness = jnp.array([9.0, 5.0, 2.0, 1.0, 0.5])
    loss = lambda x: 0.5 * jnp.sum(sharpness * x**2)
    found = []
    for rank in (None, 2):
        tx = bulk_sgd.bulk_sgd(0.1, 2, solver=bulk_sgd.streaming(factors=rank))
        step = jax.jit(
            lambda s, tx=tx: tx.update(sharpness, s, sharpness, value_fn=loss)
        )
        state = tx.init(sharpness)
        for _ in range(8):
            updates, state = step(state)
        found.append(updates)
    # Some roundings of float32 over eight steps.
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_every_acts_on_one_call_in_so_many_after_ten_sweeps():
    tx, step = stepper(every=3)
    carry, spent = start(tx), []
    for index in range(10 * RANK + 6):
        before = carry[1][0].subspace.eigenvectors
        carry, _ = step(carry, jax.random.key(index))
        spent.append(int(carry[1][0].subspace.num_matvecs))
        same = jax.tree.map(np.array_equal, before, carry[1][0].subspace.eigenvectors)
        assert all(jax.tree.leaves(same)) == (spent[-1] == 0)
    assert spent == [1] * 10 * RANK + [1, 0, 0] * 2


def test_no_step_calls_lapack():
    tx, step = stepper()
    program = step.lower(start(tx), jax.random.key(0)).compile().as_text()
    assert "lapack" not in program


@pytest.mark.parametrize("factors", [0, -1, 1.5, True])
def test_wrong_factors_are_named(factors):
    with pytest.raises(ValueError, match=rf"factors is {factors}; it must be"):
        bulk_sgd.streaming(factors=factors)


def test_wrong_axes_are_named_at_init():
    axes = optax.contrib.MuonDimensionNumbers(0, 0)
    tx = bulk_sgd.project_bulk(2, solver=bulk_sgd.streaming(factors=1, axes=axes))
    with pytest.raises(ValueError, match=r"axes is .*must name different axes"):
        tx.init(network())


def test_no_two_fields_of_a_state_share_a_buffer():
    # A step that is given them to write into would be given one twice.
    leaves = jax.tree.leaves(start(stepper()[0]))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
