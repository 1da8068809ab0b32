"""What a pass over the basis costs, next to the gradient of a batch.

A projection takes two passes over its basis, inner products and a combination, and a
step of `streaming` as many again; whatever the batch, a step costs no less than them.
"""

import statistics

import jax
import jax.numpy as jnp
from benchmark_common import BATCH, RANK, interleaved, median_ratio, timed

from bulk_sgd.linalg import basis

_GRADIENT = f"gradient, batch of {BATCH}"
_CALLS = 200  # per call of a compiled loop
_TINY = 1e-6  # what a vector takes of a result, so that it is computed


def measure(problem, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each pass over a basis of 10 vectors, and over a gradient.

    The passes over two vectors at once are what a solver and a projection could share.
    """
    loss = problem.train.take(problem.indices[0][:BATCH])
    params = problem.params
    keys = jax.random.split(jax.random.key(0), RANK)
    rows = jax.vmap(lambda key: basis.random_normal(key, params))(keys)
    passes = {
        _GRADIENT: lambda loss, rows, x: _moved(x, jax.grad(loss)(x)),
        "a vector, scaled": lambda loss, rows, x: basis.scale(1 + _TINY, x),
        "inner products of the basis with a vector": lambda loss, rows, x: _scaled(
            x, basis.inner(rows, x)[0]
        ),
        "the same with two vectors at once": lambda loss, rows, x: _scaled(
            x, jnp.sum(_inner_at_once(rows, _pair(x)))
        ),
        "a combination of the basis": lambda loss, rows, x: _moved(
            x, basis.combine(_weights(x)[0], rows)
        ),
        "two combinations at once": lambda loss, rows, x: _moved(
            x, *map(basis.row, [basis.combine(_weights(x), rows)] * 2, range(2))
        ),
    }
    contestants = {
        name: _Loop(step, params, loss, rows) for name, step in passes.items()
    }
    for loop in contestants.values():
        timed(loop)
    seconds = interleaved(contestants, repeats)
    return {
        name: {
            "ms": 1e3 * statistics.median(times) / _CALLS,
            "over a gradient": median_ratio(times, seconds[_GRADIENT]),
        }
        for name, times in seconds.items()
    }


class _Loop:
    """`_CALLS` calls in one program, each on what the last one returned."""

    def __init__(self, step, vector, loss, rows):
        def run(vector, loss, rows):
            again = lambda _, x: step(loss, rows, x)
            return jax.lax.fori_loop(0, _CALLS, again, vector)

        self.run, self.arguments = jax.jit(run), (vector, loss, rows)

    def __call__(self):
        return self.run(*self.arguments)


def _scaled(vector, number):
    return basis.scale(1 + _TINY * jnp.tanh(number), vector)


def _moved(vector, *others):
    for other in others:
        vector = jax.tree.map(lambda x, y: x + _TINY * y, vector, other)
    return vector


def _pair(vector):
    return jax.tree.map(lambda x: jnp.stack([x, x**2]), vector)


def _weights(vector):
    number = jnp.tanh(jax.tree.leaves(vector)[0].ravel()[0])
    return number * jnp.ones((2, RANK)).at[1].set(2)


def _inner_at_once(rows, pair):
    """`basis.gram` as a single product, which it is on accelerators alone."""

    def contract(x, y):
        axes = tuple(range(1, x.ndim))
        return jnp.tensordot(x, y, (axes, axes), precision="highest")

    return sum(jax.tree.leaves(jax.tree.map(contract, rows, pair)))
