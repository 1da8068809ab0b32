"""Paths of the streaming tracker along matrices that a test chooses."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np

import bulk_sgd
from bulk_sgd.solvers import subspace

SIZE, RANK = 40, 4
MAX_STEPS, MAX_MATRICES = 1000, 40
SPECTRUM = np.concatenate([[10, 8, 6, 5], np.linspace(2, -1, SIZE - 4)])
MATRIX = helpers.symmetric(SPECTRUM)


def shaped(flat):
    """A vector of the test's pytree: a matrix, a scalar and a vector."""
    return {"a": flat[:20].reshape(4, 5), "b": flat[20], "c": flat[21:]}


@functools.partial(jax.jit, static_argnames=("columns", "every"))
def _follow(matrices, order, noise, gain, seed, num_steps, *, columns, every):
    """The path of a tracker of `RANK` rows; what is not static shares one program."""
    solver = bulk_sgd.streaming(columns, every=every, gain=gain)

    def step(index, carry):
        before, path = carry
        key = jax.random.fold_in(jax.random.key(seed), index)
        wiggle = noise * jax.random.normal(key, (SIZE, SIZE))
        # Streaming leaves precision to its user: a GPU's default is TF32.
        multiply = functools.partial(jnp.matmul, precision="highest")
        matrix = matrices[order[index]] + wiggle + wiggle.T

        def matvec(vector):
            flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(vector)])
            return shaped(multiply(matrix, flat))

        gradient = shaped(multiply(matrix, jax.random.normal(key, (SIZE,))))
        after = solver.solve(matvec, *before, gradient, key)
        return after, jax.tree.map(lambda x, new: x.at[index].set(new), path, after[0])

    like = shaped(jnp.zeros(SIZE))
    start = subspace.empty(like, RANK), solver.init(like, RANK)
    path = jax.tree.map(lambda x: jnp.zeros((len(order), *x.shape), x.dtype), start[0])
    (found, state), path = jax.lax.fori_loop(0, num_steps, step, (start, path))
    return found, state, path


def run(
    num_steps, matrices=(MATRIX,), order=(0,), columns=1, every=1, gain=0.1, noise=0.0,
    seed=0,
):  # fmt: skip
    """The last subspace and state, and the subspaces of all steps.

    Each step sees one of the matrices, by default in turn, and fresh symmetric noise.
    """
    order = order if len(order) > 1 else range(len(matrices))
    shown = np.resize(np.asarray(order, np.int32), MAX_STEPS)
    stack = np.zeros((MAX_MATRICES, SIZE, SIZE), np.float32)
    stack[: len(matrices)] = matrices
    found, state, path = _follow(
        stack, shown, noise, gain, seed, num_steps, columns=columns, every=every
    )
    return found, state, jax.tree.map(lambda x: x[:num_steps], path)
