"""Leaves that are joined, against the same leaves apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis, factors, groups, xla

SHAPES = {
    "bias": (5,),
    "conv": (2, 2, 3, 6),
    "embedding": (600, 120),  # too large to be joined
    "kernels": [(7, 6), (7, 6), (6, 7)],
    "scale": (),
    "stacks": [(3, 5, 6), (3, 5, 6)],
    "vector": (9,),
}
LIKE = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def random(seed=0, like=LIKE):
    return basis.random_normal(jax.random.key(seed), like)


def stored(count=4):
    rows = factors.zeros(LIKE, count, 2)
    return factors.Factored(random(1, rows.mixing), random(2, rows.stored))


def same(found, expected, tol=0):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=10 * tol)
    jax.tree.map(close, found, expected)


def test_small_leaves_that_are_alike_are_joined_and_split_again():
    rows = stored()
    found = groups.find(rows)
    sizes = [len(places) for places in found.places]
    assert sorted(sizes) == [1, 1, 1, 2, 2, 3]
    assert groups.find(basis.zeros(LIKE, 2)).places == [[i] for i in range(10)]
    for tree in (random(), basis.map_rows(random, jnp.arange(2)), rows.stored):
        assert len(found.join(tree)) == len(sizes)
        same(found.split(found.join(tree)), tree)


def test_products_of_joined_rows_are_the_same():
    rows, vector = stored(), random()
    found = groups.find(rows)
    joined, eps = found.join(rows), float(jnp.finfo(jnp.float32).eps)
    # Sums in another order, of 72,000 numbers.
    tol = 1000 * eps
    same(joined.inner(found.join(vector)), rows.inner(vector), tol)
    same(joined.gram(joined), rows.gram(rows), tol)
    weights = jnp.arange(4.0)
    same(found.split(joined.combine(weights)), rows.combine(weights), tol)


def test_nothing_is_joined_on_several_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert groups.find(stored()).places == [[i] for i in range(10)]
    assert len(xla.joined(random())) == 10


@pytest.mark.parametrize("columns", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_streaming_is_the_same_with_and_without(monkeypatch, columns, x64):
    tx = bulk_sgd.project_bulk(4, solver=bulk_sgd.streaming(columns, factors=1))
    like = {k: v for k, v in LIKE.items() if k != "embedding"}
    params = jax.tree.map(lambda x: x.astype(jnp.float64), random(3, like))

    def loss(params):
        return sum(jnp.sum(jnp.sin(x) ** 4) for x in jax.tree.leaves(params)) ** 2

    def run():
        def step(state, key):
            updates = basis.random_normal(key, params)
            updates, state = tx.update(updates, state, params, value_fn=loss)
            return state, updates

        keys = jax.random.split(jax.random.key(0), 12)
        return jax.jit(lambda: jax.lax.scan(step, tx.init(params), keys))()

    (state, updates) = run()
    assert groups.find(state.subspace.eigenvectors).places != [[i] for i in range(9)]
    monkeypatch.setattr(xla, "is_small", lambda size: False)
    (expected, others) = run()
    same(updates, others, 1e-10)
    same(state.subspace.eigenvalues, expected.subspace.eigenvalues, 1e-10)
