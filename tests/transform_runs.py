"""A quadratic of eleven numbers, and transforms run on it; shared by the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import exact_solver, quadratic, symmetric, top

import bulk_sgd

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
