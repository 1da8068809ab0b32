"""What every transform and alias owes to optax, as in optax/contrib/_common_test.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, flat
from methods import (
    ALL,
    CHAINS,
    METHODS,
    RANK,
    SOME,
    P,
    arguments,
    compiled,
    descend,
    distance,
    loss,
    make_step,
    optimizer,
    start,
)

import bulk_sgd

pytestmark = pytest.mark.usefixtures("strict_ranks")


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("name", ALL)
def test_unexpected_arguments_pass_and_nothing_recompiles(name):
    step, tx = compiled(name), optimizer(name)
    before = tx.init(start())
    _, after = descend(step, tx, 3)
    assert step._cache_size() == 1
    assert types(after) == types(before)


@pytest.mark.parametrize("name", ALL)
def test_reaches_the_optimum_where_it_may_move(name):
    sharp, flat_part = (METHODS | CHAINS)[name][-2:]
    params, _ = descend(compiled(name), optimizer(name), 1000)
    for fate, before, after in zip(
        (sharp, flat_part), distance(start()), distance(params)
    ):
        if fate == "gone":
            # (1 − 0.3 · 0.15 · 0.2)^1000, the slowest, is 1e-4.
            assert np.linalg.norm(after) < 1e-3
        elif fate == "kept":
            # A thousand steps, each off by float32 rounding.
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [*SOME, "before momentum", "after adam"])
def test_scan_equals_the_loop(name):
    tx = optimizer(name)
    step = make_step(tx)

    @jax.jit
    def run(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=4)[0]

    params, _ = run(start())
    expected, _ = descend(compiled(name), tx, 4)
    # Compiled apart: some units of float32 rounding.
    np.testing.assert_allclose(flat(params), flat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtype_of_the_params(name, dtype):
    tx, params = optimizer(name), start(dtype)
    update = lambda params: tx.update(params, tx.init(params), params, value_fn=loss)
    updates, state = jax.eval_shape(update, params)
    assert types(updates) == types(params)
    assert types(state) == types(tx.init(params))


@pytest.mark.parametrize("name", ALL)
def test_state_is_a_named_tuple_of_arrays(name):
    state = optimizer(name).init(start())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    parts = state if type(state) is tuple else (state,)
    fields = [part for part in parts if isinstance(part, bulk_sgd.ScaleBySubspaceState)]
    assert len(fields) == 1
    assert isinstance(optax.tree_utils.tree_get(state, "subspace"), bulk_sgd.Subspace)


@pytest.mark.parametrize("name", ALL)
def test_tree_map_params_finds_the_eigenvectors(name):
    tx = optimizer(name)
    state = tx.init(start())
    marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 7, state)
    vectors = optax.tree_utils.tree_get(marked, "eigenvectors")
    assert all((leaf == 7).all() for leaf in jax.tree.leaves(vectors))
    assert int(optax.tree_utils.tree_get(marked, "total_matvecs")) == 0
    assert types(marked) == types(state)


def test_tree_map_params_works_with_a_mask():
    tx = bulk_sgd.project_bulk(1, mask={"b": True, "w": False})
    state = tx.init(start())
    marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 7, state)
    assert marked.subspace.eigenvectors["w"] is None
    assert (marked.subspace.eigenvectors["b"] == 7).all()


@pytest.mark.parametrize("name", METHODS)
def test_hyperparams_can_be_injected(name):
    factory, options = METHODS[name][:2]
    tx = factory(**arguments(name))
    inject = optax.inject_hyperparams(factory, static_args="rank")
    injected = inject(**arguments(name))

    def second_update(tx, params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params, value_fn=loss)
        return updates

    # State and hyperparams traced, as in a training loop.
    updates = jax.jit(functools.partial(second_update, injected))(start())
    expected = jax.jit(functools.partial(second_update, tx))(start())
    np.testing.assert_allclose(flat(updates), flat(expected), rtol=0, atol=1e-5)
    expected = {k for k, v in options.items() if isinstance(v, float) or callable(v)}
    assert expected <= set(injected.init(start()).hyperparams)


def test_injected_hyperparams_can_be_changed():
    make = optax.inject_hyperparams(bulk_sgd.interpolated_sgd, static_args="rank")
    tx = make(0.1, rank=RANK, alpha=0.0, solver=exact_solver())
    params = start()
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update(params, s, params, value_fn=loss))
    updates, state = step(state)
    x = flat(params)
    np.testing.assert_allclose(flat(updates), -0.1 * (x - P @ x), rtol=0, atol=1e-5)
    state.hyperparams["alpha"] = jnp.float32(0.5)
    state.hyperparams["learning_rate"] = jnp.float32(1)
    updates, state = step(state)
    np.testing.assert_allclose(flat(updates), 0.5 * P @ x - x, rtol=0, atol=1e-5)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", SOME)
def test_multi_steps_averages_gradients(name):
    tx = optimizer(name)
    multi = optax.MultiSteps(tx, every_k_schedule=2)
    step = jax.jit(lambda s, g: multi.update(g, s, start(), value_fn=loss))
    gradient = jax.grad(loss)(start())
    state = multi.init(start())
    updates, state = step(state, jax.tree.map(lambda g: 0.5 * g, gradient))
    assert not flat(updates).any()
    updates, state = step(state, jax.tree.map(lambda g: 1.5 * g, gradient))
    expected, _ = descend(compiled(name), tx, 1)
    expected = flat(expected) - flat(start())
    np.testing.assert_allclose(flat(updates), expected, rtol=0, atol=1e-5)
    assert int(optax.tree_utils.tree_get(state, "refreshes")) == 1


LINE_SEARCHES = {
    "backtracking": lambda: optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=10, store_grad=True
    ),
    "zoom": lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=10),
}


@pytest.mark.parametrize(
    ("search", "name"),
    [
        ("backtracking", "bulk_sgd"),
        ("backtracking", "dom_sgd"),
        ("backtracking", "bulk path"),
        ("backtracking", "default solver"),
        ("zoom", "bulk_sgd"),
        ("zoom", "bulk path"),
    ],
)
def test_line_search_shares_value_fn(search, name):
    tx = optax.chain(optimizer(name), LINE_SEARCHES[search]())
    step = jax.jit(make_step(tx))
    params, state = start(), tx.init(start())
    values = [float(loss(params))]
    for _ in range(5):
        params, state = step(params, state)
        values.append(float(loss(params)))
    # Never up, but for rounding, and down in the end. Bulk-SGD keeps the sharp part,
    # here 3.66 of 3.70.
    assert np.all(np.diff(values) <= 1e-6)
    assert values[-1] < values[0] - 0.01


@pytest.mark.parametrize("name", SOME)
def test_gradients_that_are_not_finite_can_be_skipped(name):
    tx = optax.apply_if_finite(optimizer(name), max_consecutive_errors=3)
    step = jax.jit(lambda s, g: tx.update(g, s, start(), value_fn=loss))
    gradient = jax.grad(loss)(start())
    updates, state = step(
        tx.init(start()), jax.tree.map(lambda g: g * jnp.nan, gradient)
    )
    assert not flat(updates).any()
    assert int(optax.tree_utils.tree_get(state, "total_matvecs")) == 0
    updates, state = step(state, gradient)
    expected, _ = descend(compiled(name), optimizer(name), 1)
    expected = flat(expected) - flat(start())
    np.testing.assert_allclose(flat(updates), expected, rtol=0, atol=1e-5)
