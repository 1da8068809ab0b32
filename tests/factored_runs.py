"""A solver with its basis in factors, shown a sequence of small matrices."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import subspace

SHAPES = {"bias": (4,), "kernel": (6, 5), "stack": (2, 3, 4)}
LIKE = {name: np.zeros(shape) for name, shape in SHAPES.items()}
SIZE, RANK = basis.size(LIKE), 4
MUON = optax.contrib.MuonDimensionNumbers
# Every matrix in factors, whatever they save.
AXES = {"bias": None, "kernel": MUON(), "stack": MUON(1, 2)}
SPECTRUM = np.concatenate([[10, 8, 6, 5], np.linspace(2, -1, SIZE - 4)])


def solver_of(columns, factors, gain):
    where = {} if factors is None else {"factors": factors, "axes": AXES}
    if columns == "power":
        return bulk_sgd.power(**where)
    return bulk_sgd.streaming(columns, gain=gain, **where)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(columns, factors, rank, gain, matrices, noise, num_steps, start=None):
    """The last subspace and state, and the largest error of P² = P on the way."""
    solver = solver_of(columns, factors, gain)
    dtype = basis.working_dtype(LIKE)
    like = jax.tree.map(lambda x: x.astype(dtype), LIKE)
    unravel = ravel_pytree(like)[1]

    def step(index, carry):
        known, error = carry
        key = jax.random.fold_in(jax.random.key(0), index)
        wiggle = noise * jax.random.normal(key, (SIZE, SIZE), dtype)
        matrix = matrices[index % len(matrices)].astype(dtype) + wiggle + wiggle.T
        multiply = functools.partial(jnp.matmul, matrix, precision="highest")
        matvec = lambda v: unravel(multiply(ravel_pytree(v)[0]))
        gradient = matvec(unravel(jax.random.normal(key, (SIZE,), dtype)))
        found, state = solver.solve(matvec, *known, gradient, key)
        probe = unravel(jax.random.normal(key, (SIZE,), dtype))
        once = found.project(probe)
        gap = basis.norm(basis.subtract(found.project(once), once))
        return (found, state), jnp.maximum(error, gap / basis.norm(probe))

    if start is None:
        start = subspace.empty(like, rank, solver.zeros)
    begin = (start, solver.init(like, rank)), jnp.zeros((), dtype)
    (found, state), error = jax.lax.fori_loop(0, num_steps, step, begin)
    return found, state, error


def follow(
    columns, factors, matrices, *, gain=0.1, rank=RANK, noise=0.0, steps=200, start=None
):
    """Shows 1, 3 or 9 matrices in turn, each with fresh symmetric noise.

    `columns` are those of `streaming`, or "power" for the other solver.
    """
    shown = np.resize(np.stack(matrices), (9, SIZE, SIZE))
    return run(columns, factors, rank, gain, shown, noise, steps, start)


def unfolded(found):
    """The rows of a subspace of any form as a float64 matrix."""
    return helpers.rows(basis.dense(found.eigenvectors))


def random_subspace():
    """A subspace with random orthonormal rows, in float64."""
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, RANK)))[0].T
    unravel = ravel_pytree(jax.tree.map(jnp.asarray, LIKE))[1]
    found = subspace.empty(LIKE, RANK)
    return found._replace(eigenvectors=jax.vmap(unravel)(jnp.asarray(rows)))


def eigenvectors(count, weights):
    """Orthonormal rows whose matrices share directions, of these weights.

    Returns them, and the same in the direction of the largest weight alone. Other
    vectors of all rows are orthogonal, so that a product with a cut row lies along one
    row.
    """
    rng = np.random.default_rng(0)
    orthogonal = lambda n: np.linalg.qr(rng.standard_normal((n, n)))[0]
    whole, cut = {"bias": orthogonal(4)[:count]}, {}
    cut["bias"] = whole["bias"]
    for name, (number, m, n) in {"kernel": (1, 6, 5), "stack": (2, 3, 4)}.items():
        terms = np.empty((count, len(weights), number, m, n))
        for at in range(number):
            lefts = orthogonal(m)[: len(weights)]
            rights = orthogonal(n)[: count * len(weights)]
            for i, right in enumerate(rights.reshape(count, -1, n)):
                for q, left in enumerate(lefts):
                    terms[i, q, at] = weights[q] * np.outer(left, right[q])
        shape = count, *SHAPES[name]
        whole[name] = terms.sum(1).reshape(shape)
        cut[name] = terms[:, 0].reshape(shape)
    length = np.linalg.norm(helpers.rows(whole)[0])
    return helpers.rows(whole) / length, helpers.rows(cut) / length
