"""A transform of rank 2 on eight numbers, eager; shared by tests of what is refused."""

import jax
import jax.numpy as jnp
from helpers import exact_solver

import bulk_sgd

PARAMS = {"b": jnp.ones(2), "w": jnp.ones((2, 3))}


def loss(params):
    return sum(jnp.sum(jnp.arange(1.0, x.size + 1) * x.ravel() ** 2)
               for x in jax.tree.leaves(params))  # fmt: skip


def transform(**options):
    return bulk_sgd.scale_by_subspace(2, **{"solver": exact_solver()} | options)


def update(tx, params=PARAMS, value_fn=loss):
    return tx.update(params, tx.init(params), params, value_fn=value_fn)
