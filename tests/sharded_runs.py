"""Runs on meshes of four CPU devices and prints what they gave, as JSON.

A process of its own, because the number of devices is fixed when JAX starts; run by
test_sharding.py. `sharded_runs.py MESH …` trains on these meshes alone, as one of
several processes where the environment says so, with a solve at every fourth step;
`MESH:float64` in float64; run by test_distributed.py.
"""

import itertools
import json
import os
import sys

import jax
import jax.numpy as jnp
import optax
from collectives import collectives
from helpers import exact_solver, quadratic
from jax.sharding import NamedSharding, PartitionSpec

import bulk_sgd
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.devices.sharding import Layout, make_mesh
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.layout import row_sharding
from bulk_sgd.linalg.orthogonalization import orthogonalize, orthonormal

MESHES = {"one": (1, 1), "data": (4, 1), "fsdp": (1, 4), "both": (2, 2)}
RANK, STEPS = 6, 16


SOLVERS = {
    "krylov_filter": {"solver": "krylov_filter"},
    "blocks": {"blocks": "layer"},
    "update_pca": {"solver": "update_pca", "window": 9},
    "streaming_pca": {"solver": "streaming_pca"},
}
FACTORS = {"solver": "streaming", "data": "batch", "factors": 2}


def config_of(mesh, microbatch_size=0):
    config = config_lib.default()
    config.data.num_train, config.data.num_test = 64, 16
    config.model.hidden = (20,)
    config.loss.reduction = "mean"
    config.batch_size, config.eval_every = 16, STEPS
    config.microbatch_size = microbatch_size
    config.subspace.rank = RANK
    config.subspace.tol = 1e-9 if jax.config.jax_enable_x64 else 1e-5
    config.subspace.max_matvecs = 100
    config.optimizer.learning_rate = 0.02
    config.optimizer.momentum = 0.5
    config.sharding.data, config.sharding.fsdp = MESHES[mesh]
    return config


def per_device(tree):
    """Number of elements of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))


def sent(compiled):
    """Shapes of what one device gets in each collective of a program."""
    return [c.shapes for c in collectives(compiled.as_text())]


def training(mesh, microbatch_size=0, **space):
    """Steps of Bulk-SGD in the training binary's own program."""
    config = config_of(mesh, microbatch_size)
    config.subspace.update(space)
    experiment = Experiment(config)
    programs = experiment.programs
    # The widest floats there are: models are born in float32 whatever is enabled.
    wide = lambda x: x.astype(jnp.result_type(float))
    state = programs.init(jax.tree.map(wide, experiment.params))
    scalars = experiment.scalars(experiment.arms[2])
    arguments = (experiment.task, experiment.indices(0), STEPS, scalars)
    program = programs.train.lower(state, *arguments, projected=True)
    compiled = program.compile()
    facts = {
        "params": per_device(state.params),
        "momentum": per_device(state.inner),
        "basis": per_device(state.projection.subspace.eigenvectors),
        "examples": per_device(experiment.task.train.inputs),
        "solver state": per_device(state.projection.solver_state),
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
    }
    state, trace = compiled(state, *arguments)
    found = state.projection.subspace
    return facts | {
        "basis after": per_device(found.eigenvectors),
        "dtype": str(trace.batch_losses.dtype),
        "losses": trace.batch_losses.tolist(),
        "alignments": trace.alignments.tolist(),
        "eigenvalues": found.eigenvalues.tolist(),
        "failed": int(state.projection.failed_refreshes),
        "sent": sent(compiled),
    }


def network(params, x):
    for i in range(3):
        x = jnp.tanh(x @ params[f"w{i}"] + params[f"b{i}"][None])
    return x


def own_loop(kind, mesh, microbatch_size=None, num_groups=1):
    """Compiled from shapes, in a loop of one's own: memory, and what is sent.

    A square kernel invites XLA to lay the basis out along one axis inside of a loop
    and along the other around it; a start that is replicated, to replicate the basis.
    """
    layout = Layout(make_mesh(config_of(mesh).sharding))
    sizes = (64, 128, 128, 8)
    like = {}
    for i, shape in enumerate(itertools.pairwise(sizes)):
        like[f"w{i}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
        like[f"b{i}"] = jax.ShapeDtypeStruct(shape[1:], jnp.float32)
    shardings = layout.parameters(like)
    put = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    params = jax.tree.map(put, like, shardings)
    tx = bulk_sgd.project_bulk(RANK, sharding=shardings)
    data = [
        jax.ShapeDtypeStruct((256, n), jnp.float32, sharding=layout.examples)
        for n in (sizes[0], sizes[-1])
    ]

    def objective(x, y):
        loss_fn = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1)
        return bulk_sgd.Objective(network, loss_fn, x, y, microbatch_size, num_groups)

    def step(params, state, x, y):
        loss = objective(x, y)
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    def solve(params, start, x, y):
        matvec = bulk_sgd.hessian(objective(x, y), params)
        matvec = bulk_sgd.sharded(matvec, shardings)
        return bulk_sgd.top_eigenpairs(matvec, start, RANK)

    def product(params, vector, x, y):
        return bulk_sgd.hessian(objective(x, y), params)(vector)

    programs = {"step": step, "solve": solve, "product": product}
    if kind == "step":
        second = jax.eval_shape(tx.init, like)  # says nothing about layouts
    else:
        second = jax.tree.map(lambda x: put(x, layout.replicated), like)
    compiled = jax.jit(programs[kind]).lower(params, second, *data).compile()
    return {
        "sent": sent(compiled),
        "places": [c.computation for c in collectives(compiled.as_text())],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def algebra(axis):
    """What each operation sends, on a leaf that is split along `axis`."""
    mesh = make_mesh(config_of("fsdp").sharding)
    split = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))
    put = lambda shape, s: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=s)
    vector = {"w": put((24, 32, 40), split)}
    shape = jax.ShapeDtypeStruct((5, 24, 32, 40), jnp.float32)
    rows = {"w": put(shape.shape, row_sharding(shape, split))}
    calls = {
        "dot": (basis.dot, vector, vector),
        "unit": (basis.unit, vector),
        "inner": (basis.inner, rows, vector),
        "gram": (basis.gram, rows, rows),
        "orthogonalize": (orthogonalize, vector, rows),
        "orthonormal": (orthonormal, rows),
    }
    return {
        name: sent(jax.jit(fn).lower(*arguments).compile())
        for name, (fn, *arguments) in calls.items()
    }


def basis_of_a_solver_that_knows_no_layout():
    """Elements per device of the basis, of 3 x 8, that a dense solver leaves."""
    layout = Layout(make_mesh(config_of("fsdp").sharding))
    params = jax.device_put(jnp.arange(8.0), layout.replicated)
    tx = bulk_sgd.project_bulk(
        3, solver=exact_solver(), sharding=layout.parameters(params)
    )
    loss = quadratic(jnp.diag(jnp.arange(8.0)))
    state = jax.device_put(tx.init(params), layout.replicated)
    update = jax.jit(lambda *args: tx.update(*args, value_fn=loss)[1])
    return per_device(update(params, state, params).subspace.eigenvectors)


def all_runs():
    """What test_sharding.py looks at."""
    return {
        "dense": basis_of_a_solver_that_knows_no_layout(),
        "algebra": [algebra(axis) for axis in range(3)],
        "training": {mesh: training(mesh) for mesh in MESHES}
        | {"data, microbatches": training("data", 32)},
        "solvers": {name: training("fsdp", **SOLVERS[name]) for name in SOLVERS},
        "factors": {m: training(m, **FACTORS) for m in ("one", "fsdp", "both")},
        "solve": {mesh: own_loop("solve", mesh) for mesh in ("one", "data", "fsdp")},
        "step": {
            "fsdp": own_loop("step", "fsdp"),
            "fsdp, microbatches": own_loop("step", "fsdp", 64),
            "data, microbatches": own_loop("step", "data", 64),
        },
        "product": {
            "data": own_loop("product", "data", 64),
            "data, groups": own_loop("product", "data", 64, 4),
            "data, groups, remainder": own_loop("product", "data", 96, 4),
        },
    }


if __name__ == "__main__":
    runs = {}
    with distributed.job("on" if "JAX_NUM_PROCESSES" in os.environ else "off"):
        for name in sys.argv[1:]:
            mesh, _, dtype = name.partition(":")
            with jax.enable_x64(dtype == "float64"):
                # Some solves are enough: processes exchange messages in every product.
                runs[name] = training(mesh, refresh_every=4)
        print(json.dumps(runs or all_runs()))
