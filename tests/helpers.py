"""Tiny problems and their dense float64 answers, shared by the tests.

A matrix here is a NumPy array in float64; whatever a test compares it with was
computed by bulk_sgd without ever forming a matrix.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.curvature.operators import as_pytree


def symmetric(eigenvalues, seed=0):
    """A matrix with the given eigenvalues in a random orthogonal frame."""
    eigenvalues = np.asarray(eigenvalues, np.float64)
    shape = (eigenvalues.size, eigenvalues.size)
    frame, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal(shape))
    return (frame * eigenvalues) @ frame.T


def abstract_mesh(*sizes, names=("data", "fsdp")):
    """A mesh without devices, with Auto axes as those of `sharding.make_mesh`."""
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.sharding.AbstractMesh(sizes, names, auto)


def operator(matrix, dtype=None):
    """A matvec as a callable pytree, so that equal shapes share one program."""
    return jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix, dtype))


@jax.jit
def _columns(matvec, like):
    vector, unravel = ravel_pytree(like)
    column = lambda e: ravel_pytree(matvec(unravel(e)))[0]
    return jax.vmap(column)(jnp.eye(vector.size, dtype=vector.dtype))


def dense(matvec, like):
    """The matrix of a linear map between pytrees like `like`."""
    return np.asarray(_columns(as_pytree(matvec), like), np.float64).T


def largest(matrix, count=1):
    """The largest eigenvalues of a matrix with thousands of rows, by ARPACK."""
    values = scipy.sparse.linalg.eigsh(matrix, count, which="LA")[0]
    return np.sort(values)[::-1]


def flat(vector):
    """A pytree vector as a float64 array, in the order of `ravel_pytree`."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(vector)]
    return np.concatenate(leaves)


def rows(basis):
    """The rows of a pytree basis as a `(k, n)` float64 matrix."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(basis)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def projector(vectors):
    """The orthogonal projector onto the span of orthonormal rows."""
    return vectors.T @ vectors


ORDERS = {
    "largest": lambda x: -x,
    "smallest": lambda x: x,
    "magnitude": lambda x: -abs(x),
}


def top(matrix, rank, which="largest"):
    """The `rank` leading eigenvalues of a matrix and the projector on their vectors."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    order = np.argsort(ORDERS[which](values), kind="stable")[:rank]
    return values[order], projector(vectors[:, order].T)


def exact_solver():
    """A Solver by dense eigendecomposition: a reference, and quick to compile."""

    def solve(matvec, subspace, state, updates, key):
        del key
        flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, updates))
        dtype = subspace.eigenvalues.dtype
        columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])
        matrix = columns(jnp.eye(flat.size, dtype=flat.dtype)).astype(dtype)
        values, vectors = jnp.linalg.eigh(matrix)
        found = subspace._replace(
            eigenvalues=values[::-1][: subspace.rank],
            eigenvectors=jax.vmap(unravel)(vectors.T[::-1][: subspace.rank]),
            residuals=jnp.zeros(subspace.rank, dtype),
            converged=jnp.all(jnp.isfinite(values)),
            num_matvecs=jnp.int32(flat.size),
        )
        return found, state

    return bulk_sgd.Solver(lambda params, rank: (), solve)


def quadratic(matrix):
    """The loss ½ xᵀ A x of a pytree of as many numbers; its Hessian is A."""
    matrix = np.asarray(matrix)

    def loss(params):
        x = ravel_pytree(params)[0]
        return 0.5 * x @ jnp.asarray(matrix, x.dtype) @ x

    return loss


def count_equations(jaxpr, name):
    """How often a primitive occurs in a jaxpr and all jaxprs inside it."""
    return sum(equation.primitive.name == name for equation in equations(jaxpr))


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


# Networks: (model_fn, params, inputs), all NumPy in float64 so that a test decides
# about the precision.


def mlp(activation=jnp.tanh):
    """3 inputs, 4 hidden units, 2 outputs: 26 parameters, 7 examples."""
    rng = np.random.default_rng(0)
    params = {
        "hidden": {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(4)},
        "out": {"w": rng.standard_normal((4, 2)), "b": rng.standard_normal(2)},
    }

    def model_fn(params, x):
        hidden = x @ params["hidden"]["w"]
        hidden = activation(hidden + params["hidden"]["b"][None])
        return hidden @ params["out"]["w"] + params["out"]["b"][None]

    return model_fn, params, rng.standard_normal((7, 3))


def cnn():
    """Two 3x3 filters on 5x5 images, tanh, mean pool, 2 outputs: 24 parameters."""
    rng = np.random.default_rng(1)
    params = {
        "filters": rng.standard_normal((3, 3, 1, 2)),
        "w": rng.standard_normal((2, 2)),
        "b": rng.standard_normal(2),
    }

    def model_fn(params, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(
            x, params["filters"], (1, 1), "VALID", dimension_numbers=dimensions
        )
        features = jnp.tanh(maps).mean(axis=(1, 2))
        return features @ params["w"] + params["b"][None]

    return model_fn, params, rng.standard_normal((7, 5, 5, 1))


def squared_error(outputs, targets):
    """Squared error summed over outputs, one loss per example."""
    return jnp.sum((outputs - targets) ** 2, axis=-1)


def cross_entropy(outputs, labels):
    """Negative log-likelihood of integer labels, one loss per example."""
    picked = jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(outputs, axis=1) - picked


def objective(network, loss_fn, microbatch_size=None, dtype=None):
    """An Objective on a network above, and its params, in a dtype or NumPy's own."""
    model_fn, params, inputs = network
    if loss_fn is cross_entropy:
        targets = jnp.asarray(np.arange(7) % 2)
    else:
        targets = np.random.default_rng(2).standard_normal((7, 2))
        targets = jnp.asarray(targets, dtype)
    made = bulk_sgd.Objective(
        model_fn, loss_fn, jnp.asarray(inputs, dtype), targets, microbatch_size
    )
    return made, jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), params)
