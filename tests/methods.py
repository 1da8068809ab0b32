"""Every transform and alias, alone and in chains, on a quadratic of six numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import exact_solver, flat, symmetric, top
from jax.flatten_util import ravel_pytree

import bulk_sgd

RANK, RATE = 2, 0.15  # 2 / η = 13 is above λ_1: SGD is stable
MATRIX = symmetric([10, 8, 1, 0.6, 0.4, 0.2])
P = top(MATRIX, RANK)[1]
TARGET = {"b": np.array([1.0, -2.0]), "w": np.array([[0.5, 1.0], [-1.0, 2.0]])}
OPTIMUM = flat(TARGET)
OFFSET = np.random.default_rng(0).standard_normal(6)


def start(dtype=jnp.float32):
    x = jnp.asarray(OPTIMUM + OFFSET, jnp.float32)
    unravel = ravel_pytree(jax.tree.map(jnp.float32, TARGET))[1]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), unravel(x))


def loss(params):
    x = ravel_pytree(params)[0]
    x = x - jnp.asarray(OPTIMUM, x.dtype)
    return 0.5 * x @ jnp.asarray(MATRIX, x.dtype) @ x


# Each method by its factory, with arguments, and what is to become of the sharp and of
# the flat part of the distance to the optimum: "gone", "kept" or None (neither).
METHODS = {
    "project_bulk": (bulk_sgd.project_bulk, {}, "kept", "gone"),
    "project_dominant": (bulk_sgd.project_dominant, {}, "gone", "kept"),
    "scale_by_subspace": (
        bulk_sgd.scale_by_subspace,
        {"dominant_scale": 0.5, "bulk_scale": 2.0},
        "gone",
        "gone",
    ),
    "scale_by_subspace, schedules": (
        bulk_sgd.scale_by_subspace,
        {
            "dominant_scale": optax.linear_schedule(0.0, 1.0, 50),
            "bulk_scale": optax.linear_schedule(2.0, 1.0, 50),
        },
        "gone",
        "gone",
    ),
    "bulk_sgd": (bulk_sgd.bulk_sgd, {"learning_rate": RATE}, "kept", "gone"),
    "bulk_sgd, schedule": (
        bulk_sgd.bulk_sgd,
        {"learning_rate": optax.constant_schedule(RATE), "refresh_every": 3},
        "kept",
        "gone",
    ),
    "dom_sgd": (bulk_sgd.dom_sgd, {"learning_rate": RATE}, "gone", "kept"),
    "bulk path": (
        bulk_sgd.interpolated_sgd,
        {"learning_rate": RATE, "alpha": 0.3, "path": "bulk"},
        "gone",
        "gone",
    ),
    "dom path": (
        bulk_sgd.interpolated_sgd,
        {"learning_rate": RATE, "alpha": 0.3, "path": "dom"},
        "gone",
        "gone",
    ),
    "cross path": (
        bulk_sgd.interpolated_sgd,
        {"learning_rate": RATE, "alpha": 0.3, "path": "cross"},
        "gone",
        "gone",
    ),
    "default solver": (
        bulk_sgd.bulk_sgd,
        {"learning_rate": RATE, "solver": bulk_sgd.lanczos(tol=1e-5)},
        "kept",
        "gone",
    ),
}

bulk = functools.partial(bulk_sgd.project_bulk, RANK, solver=exact_solver())
adam = functools.partial(optax.adam, optax.linear_schedule(0.03, 0.0, 1000))
# Momentum is linear, so that the parts stay apart. Adam divides by root mean squares:
# a bulk gradient gives an update with a sharp part, and a sharp one, which never
# vanishes where the sharp part is kept, an update that moves the flat part for ever.
CHAINS = {
    "after momentum": (lambda: (optax.sgd(RATE / 5, 0.8), bulk()), "kept", "gone"),
    "before momentum": (lambda: (bulk(), optax.sgd(RATE / 5, 0.8)), "kept", "gone"),
    "after adam": (lambda: (adam(), bulk()), "kept", None),
    "before adam": (lambda: (bulk(), adam()), None, "gone"),
    "scaled after adam": (
        lambda: (
            adam(),
            bulk_sgd.scale_by_subspace(RANK, 0.5, 2.0, solver=exact_solver()),
        ),
        "gone",
        "gone",
    ),
}
ALL = [*METHODS, *CHAINS]
# Every method is the same transform inside: what wraps it is tried on these.
SOME = ["project_bulk", "scale_by_subspace, schedules", "cross path", "default solver"]


def arguments(name):
    return {"rank": RANK, "solver": exact_solver()} | METHODS[name][1]


@functools.cache
def optimizer(name):
    """A method of the tables as a whole optimizer."""
    if name in CHAINS:
        return optax.chain(*CHAINS[name][0]())
    tx = METHODS[name][0](**arguments(name))
    if "learning_rate" not in METHODS[name][1]:
        tx = optax.chain(tx, optax.scale_by_learning_rate(RATE))
    return tx


def make_step(tx, **extra):
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        args = {"value_fn": loss, "value": value, "grad": gradient} | extra
        updates, state = tx.update(gradient, state, params, **args)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def compiled(name):
    """One compiled step of a method, shared by the tests that use it as it is."""
    return jax.jit(make_step(optimizer(name), an_argument_that_nobody_expects=1))


def descend(step, tx, steps):
    params = start()
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def distance(params):
    """The sharp and the flat part of the distance to the optimum."""
    x = flat(params) - OPTIMUM
    return P @ x, x - P @ x
