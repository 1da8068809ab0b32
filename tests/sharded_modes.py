"""Solves on a mesh of four CPU devices in each mode, and prints what was sent.

A process of its own, as sharded_runs.py; run by test_second_derivatives.py.
"""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
from helpers import squared_error
from sharded_runs import RANK, config_of, network, sent

import bulk_sgd
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.lab.devices.sharding import Layout, make_mesh

SIZES = (16, 32, 32, 8)


def solve(mode):
    """The eigenvalues, and the shapes of what one device gets in each collective."""
    layout = Layout(make_mesh(config_of("fsdp").sharding))
    keys = jax.random.split(jax.random.key(0), 5)
    params = {}
    for i, (rows, columns) in enumerate(itertools.pairwise(SIZES)):
        params[f"w{i}"] = jax.random.normal(keys[i], (rows, columns)) / rows**0.5
        params[f"b{i}"] = jnp.zeros(columns)
    shardings = layout.parameters(params)
    params = jax.device_put(params, shardings)
    x, y = (
        jax.device_put(jax.random.normal(key, (64, size)), layout.examples)
        for key, size in zip(keys[3:], (SIZES[0], SIZES[-1]))
    )

    @jax.jit
    def pairs(params, x, y):
        made = bulk_sgd.Objective(network, squared_error, x, y)
        matvec = bulk_sgd.hessian(made, params, mode=mode)
        return bulk_sgd.top_eigenpairs(
            bulk_sgd.sharded(matvec, shardings), params, RANK
        ).eigenvalues

    compiled = pairs.lower(params, x, y).compile()
    return {"eigenvalues": compiled(params, x, y).tolist(), "sent": sent(compiled)}


if __name__ == "__main__":
    json.dump({mode: solve(mode) for mode in second_derivatives.MODES[1:]}, sys.stdout)
